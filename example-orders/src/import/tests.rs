//! What the reader makes of a file, good and bad.

mod faults;
mod files;
mod in_flight;
mod records;

use super::{
    group::FileOrder,
    orders::{Entry, Orders},
    rejection::{Fault, Rejection},
};
use crate::order::OrderId;

const HEADER: &str =
    "order_id,customer_id,store_id,placed_at,sku,product,department,quantity,amount_cents,discount_cents\n";

/// A good row of `order`.
fn row(order: i64) -> String {
    format!("{order},7,3,2017-01-01T12:00:00Z,55,BREAD,BAKERY,2,598,10\n")
}

/// A row of order 5 in which `column` holds `value`.
fn row_with(column: usize, value: impl AsRef<[u8]>) -> Vec<u8> {
    let row = row(5);
    let mut fields: Vec<&[u8]> = row.trim().split(',').map(str::as_bytes).collect();
    fields[column] = value.as_ref();
    let mut bytes = fields.join(&b","[..]);
    bytes.push(b'\n');
    bytes
}

/// A file of a header and `parts`.
fn file<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut bytes = HEADER.as_bytes().to_vec();
    parts.into_iter().for_each(|part| bytes.extend_from_slice(part.as_ref()));
    bytes
}

fn read(bytes: impl AsRef<[u8]>) -> Vec<Entry> {
    Orders::new(bytes.as_ref()).unwrap().collect()
}

/// The orders that can be imported, as (id, lines).
fn accepted(entries: &[Entry]) -> Vec<(i64, usize)> {
    entries.iter().filter_map(order).map(|order| (order.id.0, order.purchase.lines.len())).collect()
}

fn order(entry: &Entry) -> Option<&FileOrder> {
    match entry {
        Entry::Order(order) => Some(order),
        _ => None,
    }
}

fn rejected(entries: &[Entry]) -> Vec<Rejection> {
    let rejections = entries.iter().filter_map(|entry| match entry {
        Entry::Rejected(rejection) => Some(rejection.clone()),
        _ => None,
    });
    rejections.collect()
}

fn rejection(line: u64, order: impl Into<Option<i64>>, field: &'static str, reason: &str) -> Rejection {
    Rejection { line, order: order.into().map(OrderId), fault: Fault::new(field, reason), lines_dropped: 0 }
}

/// The entry of a file that ends early.
fn ends_early(entries: &[Entry]) -> Option<(u64, &str)> {
    match entries.last() {
        Some(Entry::EndsEarly { last_good_line, reason }) => Some((*last_good_line, reason)),
        _ => None,
    }
}
