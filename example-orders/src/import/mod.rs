//! Orders of an old system, brought over from a file.

mod columns;
mod in_flight;
mod orders;
mod progress;
mod records;
mod rejection;
mod source;
mod summary;
#[cfg(test)]
mod tests;
