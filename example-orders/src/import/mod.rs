//! Orders of an old system, brought over from a file.
//!
//! A file goes through [`source`] (bytes), [`records`] (CSV), [`columns`] (rows) and [`orders`], on a thread of its own;
//! then many orders at once ([`in_flight`]) through the aggregate ([`past`]).

mod columns;
mod group;
mod in_flight;
mod orders;
mod past;
mod progress;
mod record;
mod records;
mod rejection;
mod source;
mod summary;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read},
    panic::resume_unwind,
    path::Path,
    thread,
};

use annals::{App, BoxError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{orders::Orders, progress::Progress};
pub(crate) use self::{
    source::Source,
    summary::{Ending, Summary},
};

/// Entries that are read ahead of the orders on their way.
const READ_AHEAD: usize = 16;

/// A file of orders, opened and with a header that makes sense.
pub(crate) struct Import {
    orders: Orders<Box<dyn Read + Send>>,
    progress: Progress,
}

impl Import {
    /// Reads the header of `source`. Rejections will go to the file `rejections` too, if there is one.
    ///
    /// # Errors
    /// A column is missing, or the file `rejections` cannot be made.
    pub(crate) fn open(source: Source, rejections: Option<&Path>) -> Result<Self, BoxError> {
        let mut progress = Progress::new(&source)?;
        let orders = Orders::new(source.text).map_err(|error| format!("cannot import {}: {error}", source.name))?;
        if let Some(path) = rejections {
            let failed = |error: io::Error| match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    format!("{} is there already: delete it, or name another file for the rejections", path.display())
                }
                _ => format!("cannot write the rejections to {}: {error}", path.display()),
            };
            progress.write_to(path).map_err(failed)?;
        }
        Ok(Self { orders, progress })
    }

    /// Records the orders of the file, until it ends or `stop` asks for an end.
    ///
    /// # Errors
    /// The rejections cannot be written.
    pub(crate) async fn run(self, app: &App, stop: &CancellationToken) -> io::Result<(Summary, Ending)> {
        let Self { orders, mut progress } = self;
        let (sender, entries) = mpsc::channel(READ_AHEAD);
        // Not a task: nobody waits for a thread that hangs in a read when the process ends.
        let reader = thread::spawn(move || {
            for entry in orders {
                if sender.blocking_send(entry).is_err() {
                    break;
                }
            }
        });
        let record = async |id, purchase| past::record(app, id, purchase, stop).await;
        let outcome = in_flight::run(entries, record, stop, &mut progress).await;
        progress.finish()?;
        let (summary, ending) = outcome?;
        if matches!(ending, Ending::Complete)
            && let Err(panic) = reader.join()
        {
            resume_unwind(panic);
        }
        Ok((summary, ending))
    }
}
