//! Lines for people.

use std::{
    error::Error,
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write, stderr, stdout},
};

/// Puts a line on standard output.
///
/// # Errors
/// It cannot be written; [`is_unread`] says whether that is nobody's fault.
pub(crate) fn say(line: impl Display) -> io::Result<()> {
    writeln!(stdout().lock(), "{line}")
}

/// [`say`] for what ends with a verdict or has more to do: it goes on whether or not somebody reads the rest.
///
/// # Errors
/// It cannot be written, and somebody reads.
pub(crate) fn say_if_read(line: impl Display) -> io::Result<()> {
    say(line).or_else(|error| if is_unread(&error) { Ok(()) } else { Err(error) })
}

/// Whether an error says that nobody reads standard output any more (`| head`): that is an end, not a failure.
pub(crate) fn is_unread(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Puts a line on standard error, in the place of a progress bar that may stand there. Nobody has to read it.
pub(crate) fn note(line: impl Display) {
    let mut stderr = stderr().lock();
    let clear = if stderr.is_terminal() { "\r\x1b[2K" } else { "" };
    let _ = writeln!(stderr, "{clear}{line}");
}
