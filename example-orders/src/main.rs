//! example-orders.

fn main() {}
