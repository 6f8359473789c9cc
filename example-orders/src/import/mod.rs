//! Orders of an old system, brought over from a file.

mod columns;
mod orders;
mod records;
mod rejection;
mod source;
#[cfg(test)]
mod tests;
