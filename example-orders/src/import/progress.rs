//! What a person sees while an import runs: a bar, and what was rejected.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{rejection::Rejection, source::Source, summary::Summary};
use crate::{figures::count, say::note};

/// Rejections shown on the terminal; there may be millions.
const SHOWN: u64 = 20;

/// Shows an import on standard error. The bar is hidden where that is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    bytes_read: super::source::BytesRead,
    rejected: u64,
    file: Option<BufWriter<File>>,
}

impl Progress {
    /// For the import of `source`.
    ///
    /// # Errors
    /// The bar's template is wrong.
    pub(crate) fn new(source: &Source) -> io::Result<Self> {
        let bar = ProgressBar::new(source.total_bytes);
        let template = "{bar:30} {percent:>3} %  {msg}  {eta} left";
        bar.set_style(ProgressStyle::with_template(template).map_err(io::Error::other)?);
        Ok(Self { bar, bytes_read: source.bytes_read.clone(), rejected: 0, file: None })
    }

    /// Lets every rejection go to the new file `path` too.
    ///
    /// # Errors
    /// The file is there already, whatever it holds, or cannot be made.
    pub(crate) fn write_to(&mut self, path: &Path) -> io::Result<()> {
        self.file = Some(BufWriter::new(File::create_new(path)?));
        Ok(())
    }

    /// Moves the bar.
    pub(crate) fn show(&self, so_far: &Summary) {
        if self.bar.is_hidden() {
            return;
        }
        let orders = so_far.orders();
        let rate = orders as f64 / self.bar.elapsed().as_secs_f64().max(0.001);
        self.bar.set_message(format!("{} orders, {} a second", count(orders as i64), count(rate as i64)));
        self.bar.set_position(self.bytes_read.get());
    }

    /// Tells of a rejection.
    ///
    /// # Errors
    /// The file of rejections cannot be written.
    pub(crate) fn reject(&mut self, rejection: &Rejection) -> io::Result<()> {
        self.rejected += 1;
        if self.rejected <= SHOWN {
            self.bar.suspend(|| note(rejection));
        }
        match &mut self.file {
            Some(file) => writeln!(file, "{rejection}"),
            None => Ok(()),
        }
    }

    /// Takes the bar away.
    ///
    /// # Errors
    /// The file of rejections cannot be written.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.bar.finish_and_clear();
        if self.rejected > SHOWN {
            let more = count((self.rejected - SHOWN) as i64);
            note(format_args!("… and {more} more rejections (all of them with --rejections FILE)"));
        }
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}
