//! Whole files: headers, gzip, and ends that come early.

use std::io::{Read, Write};

use flate2::{Compression, write::GzEncoder};

use super::*;
use crate::import::{columns::HeaderError, source::Source};

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn open(bytes: &[u8]) -> Source {
    let path = std::env::temp_dir().join(format!("orders-{}-{:p}", std::process::id(), bytes));
    std::fs::write(&path, bytes).unwrap();
    let source = Source::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    source
}

fn header_error(bytes: impl AsRef<[u8]>) -> HeaderError {
    Orders::new(bytes.as_ref()).map(drop).unwrap_err()
}

#[test]
fn the_sample_is_read_whole() {
    let sample = include_bytes!("../../../data/orders-sample.csv");

    let entries = read(sample);

    let orders = || entries.iter().filter_map(order);
    assert_eq!(rejected(&entries), []);
    assert_eq!(orders().count(), 1_000);
    assert_eq!(orders().map(|order| order.purchase.lines.len()).sum::<usize>(), 10_388);
    assert_eq!(orders().map(|order| order.lines_dropped).sum::<u64>(), 61);
    assert_eq!(orders().map(|order| order.purchase.amount_cents).sum::<i64>(), 3_078_529);
}

#[test]
fn columns_stand_in_any_order() {
    let text = "note,discount_cents,amount_cents,quantity,department,product,sku,placed_at,store_id,customer_id,order_id\n\
                ,10,598,2,BAKERY,BREAD,55,2017-01-01T13:00:00+01:00,3,7,5\n";

    let purchase = |entries: &[Entry]| order(&entries[0]).unwrap().purchase.clone();
    assert_eq!(purchase(&read(text)), purchase(&read(file([row(5)]))));
}

#[test]
fn a_header_names_every_column_once() {
    assert!(matches!(header_error(""), HeaderError::Empty));
    assert!(matches!(header_error(HEADER.replace("sku", "article")), HeaderError::Missing { missing: "sku", .. }));
    assert!(matches!(header_error(HEADER.replace("sku", "product")), HeaderError::Missing { missing: "sku", .. }));
    assert!(matches!(header_error(HEADER.replace("sku", "sku,sku")), HeaderError::Twice("sku")));
    assert!(matches!(header_error(b"\xff\xfeo\0r\0"), HeaderError::Unreadable(_)));
    assert!(matches!(header_error(row(5)), HeaderError::Missing { missing: "order_id", .. }));
}

#[test]
fn files_of_other_systems_are_fine() {
    let plain = read(file([row(5), row(6)]));

    let windows = format!("\u{feff}{HEADER}{}{}", row(5), row(6)).replace('\n', "\r\n");
    assert_eq!(read(windows), plain);
    let blank_lines = file([row(5), "\n\n".into(), row(6), "\r\n".into()]);
    assert_eq!(accepted(&read(blank_lines)), [(5, 1), (6, 1)]);
    let no_last_line_end = file([row(5), row(6).trim_end().into()]);
    assert_eq!(read(no_last_line_end), plain);
}

#[test]
fn quoted_fields_hold_anything() {
    let entries = read(file([row_with(5, "\"BREAD, \"\"SLICED\"\"\r\nAND TOASTED\""), row_with(7, "x")]));
    assert_eq!(rejected(&entries), [rejection(4, 5, "quantity", "\"x\" is not a whole number")]);

    let entries = read(file([row_with(5, "\"BREAD, \"\"SLICED\"\"\r\nAND TOASTED\"")]));
    assert_eq!(order(&entries[0]).unwrap().purchase.lines[0].product, "BREAD, \"SLICED\"\r\nAND TOASTED");
}

#[test]
fn gzip_is_known_by_its_first_bytes() {
    let text = file([row(5), row(6)]);

    for stored in [text.clone(), gzip(&text)] {
        let Source { text: unpacked, total_bytes, bytes_read, .. } = open(&stored);

        let entries: Vec<Entry> = Orders::new(unpacked).unwrap().collect();

        assert_eq!(entries, read(&text));
        assert_eq!((total_bytes, bytes_read.get()), (stored.len() as u64, stored.len() as u64));
    }
}

#[test]
fn a_gzip_file_in_several_parts_is_one() {
    let parts = [gzip(&file([row(5)])), gzip(row(6).as_bytes())].concat();
    let mut text = vec![];
    open(&parts).text.read_to_end(&mut text).unwrap();

    assert_eq!(text, file([row(5), row(6)]));
}

#[test]
fn a_truncated_gzip_file_names_its_last_good_line() {
    let text = include_bytes!("../../../data/orders-sample.csv");
    let packed = gzip(text);

    let entries: Vec<Entry> = Orders::new(open(&packed[..packed.len() / 2]).text).unwrap().collect();

    let (last_good_line, reason) = ends_early(&entries).unwrap();
    assert!(!reason.is_empty());
    let orders: Vec<&FileOrder> = entries.iter().filter_map(order).collect();
    assert!(orders.len() > 100 && orders.last().unwrap().line < last_good_line);
    let [rejection] = &rejected(&entries)[..] else { panic!("{:?}", rejected(&entries)) };
    assert_eq!(rejection.fault, Fault::new("row", "the file ends within this order"));
    let whole = read(text);
    assert_eq!(entries[..orders.len()], whole[..orders.len()]);
}

#[test]
fn a_gzip_file_that_lacks_its_end_rejects_the_last_order() {
    let packed = gzip(&file([row(5), row(6)]));

    let entries: Vec<Entry> = Orders::new(open(&packed[..packed.len() - 4]).text).unwrap().collect();

    assert_eq!(accepted(&entries), [(5, 1)]);
    assert_eq!(rejected(&entries), [rejection(3, 6, "row", "the file ends within this order")]);
    assert_eq!(ends_early(&entries).unwrap().0, 3);
}

#[test]
fn a_file_cut_within_a_row_rejects_the_order_of_that_row() {
    let entries = read(file([&row(5)[..], "6,7,3,2017-0"]));

    assert_eq!(accepted(&entries), [(5, 1)]);
    assert_eq!(rejected(&entries), [rejection(3, 6, "sku", "the row has 4 fields, the header has 10")]);
    assert_eq!(ends_early(&entries), Some((2, "the last row is not whole")));
}

#[test]
fn a_file_cut_within_an_order_id_rejects_the_order_before() {
    let entries = read(file([&row(4)[..], &row(55), "5"]));

    assert_eq!(accepted(&entries), [(4, 1)]);
    assert_eq!(rejected(&entries), [rejection(4, 55, "row", "the file ends within this order")]);
    assert_eq!(ends_early(&entries), Some((3, "the last row is not whole")));
}

#[test]
fn a_header_alone_is_a_file_of_no_orders() {
    assert_eq!(read(HEADER), []);
}
