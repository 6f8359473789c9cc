//! Lines for people.

use std::{
    fmt::Display,
    io::{IsTerminal, Write, stderr},
};

/// Puts a line on standard error, in the place of a progress bar that may stand there. Nobody has to read it.
pub(crate) fn note(line: impl Display) {
    let mut stderr = stderr().lock();
    let clear = if stderr.is_terminal() { "\r\x1b[2K" } else { "" };
    let _ = writeln!(stderr, "{clear}{line}");
}
