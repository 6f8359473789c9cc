//! An order service on Annals.

mod order;
mod read_models;

fn main() {}
