//! P6: a command takes effect once, on current state, completely or not at all.

mod both;
mod current;
mod envelope;
mod inside;
mod repeated;
mod snapshot;
mod started;
mod stored;
