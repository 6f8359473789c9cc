//! What a person sees while an import runs: a bar, and what was rejected.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{rejection::Rejection, source::Source, summary::Summary};
use crate::{
    figures::{count, counted},
    say::note,
};

/// Rejections shown on the terminal; there may be millions.
const SHOWN: u64 = 20;

/// How often a line tells of the progress where there is no bar.
const EVERY: Duration = Duration::from_secs(3);

/// Shows an import on standard error: by a bar, or by a line now and then where that is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// When it was first looked at: opening the shop is not the import's time.
    begun: Option<Instant>,
    told: Instant,
    total_bytes: u64,
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
        let (total_bytes, bytes_read) = (source.total_bytes, source.bytes_read.clone());
        Ok(Self { bar, begun: None, told: Instant::now(), total_bytes, bytes_read, rejected: 0, file: None })
    }

    /// Lets every rejection go to the new file `path` too.
    ///
    /// # Errors
    /// The file is there already, whatever it holds, or cannot be made.
    pub(crate) fn write_to(&mut self, path: &Path) -> io::Result<()> {
        self.file = Some(BufWriter::new(File::create_new(path)?));
        Ok(())
    }

    /// Moves the bar, or tells the progress if it is time.
    pub(crate) fn show(&mut self, so_far: &Summary) {
        let (read, time) = (self.bytes_read.get(), self.begun.get_or_insert_with(Instant::now).elapsed());
        if !self.bar.is_hidden() {
            self.bar.set_message(speed(so_far.orders(), time));
            self.bar.set_position(read);
        } else if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            note(line(so_far.orders(), time, read, self.total_bytes));
        }
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
            let more = counted((self.rejected - SHOWN) as i64, "more rejection");
            note(format_args!("… and {more} (all of them with --rejections FILE)"));
        }
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

fn speed(orders: u64, time: Duration) -> String {
    let rate = orders as f64 / time.as_secs_f64().max(0.001);
    format!("{}, {} a second", counted(orders as i64, "order"), count(rate as i64))
}

/// What is done and what is left; of a pipe nobody knows the length.
fn line(orders: u64, time: Duration, read: u64, total: u64) -> String {
    let speed = speed(orders, time);
    if read == 0 || read > total {
        return speed;
    }
    let left = time.as_secs_f64() * (total - read) as f64 / read as f64;
    format!("{speed}, {} % of the file, {} left", read * 100 / total, counted(left.round() as i64, "second"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_how_fast_and_what_is_left() {
        let line = |orders, read, total| line(orders, Duration::from_secs(10), read, total);

        assert_eq!(line(20_000, 25, 100), "20,000 orders, 2,000 a second, 25 % of the file, 30 seconds left");
        assert_eq!(line(1, 100, 100), "1 order, 0 a second, 100 % of the file, 0 seconds left");
        assert_eq!(line(20, 7, 0), "20 orders, 2 a second");
        assert_eq!(line(0, 0, 0), "0 orders, 0 a second");
    }
}
