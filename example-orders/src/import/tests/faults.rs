//! Each fault rejects its own order alone, and says where and why.

use super::*;

/// Puts `bad`, a row of order 5, on line 3, between two good rows of it and two good orders.
#[track_caller]
fn rejects(bad: impl AsRef<[u8]>, field: &'static str, reason: &str) {
    let bad = bad.as_ref();
    let middle = [row(4).as_bytes(), bad, row(5).as_bytes(), row(6).as_bytes()].concat();

    let entries = read(file([middle]));

    assert_eq!(rejected(&entries), [rejection(3, 5, field, reason)]);
    assert_eq!(accepted(&entries), [(4, 1), (6, 1)]);
}

#[test]
fn a_negative_quantity() {
    rejects(row_with(7, "-1"), "quantity", "\"-1\" is negative");
}

#[test]
fn a_negative_amount() {
    rejects(row_with(8, "-598"), "amount_cents", "\"-598\" is negative");
}

#[test]
fn a_negative_discount() {
    rejects(row_with(9, "-1"), "discount_cents", "\"-1\" is negative");
}

#[test]
fn a_bad_number() {
    rejects(row_with(7, "two"), "quantity", "\"two\" is not a whole number");
    rejects(row_with(8, "5.98"), "amount_cents", "\"5.98\" is not a whole number");
    rejects(row_with(1, "+7"), "customer_id", "\"+7\" is not a whole number");
    rejects(row_with(2, ""), "store_id", "is empty");
    rejects(row_with(4, "9223372036854775808"), "sku", "\"9223372036854775808\" is too large");
    rejects(row_with(8, "100000000001"), "amount_cents", "100000000001 is too large");
}

#[test]
fn a_bad_time() {
    let reason = "\"2017-02-30T12:00:00Z\" is no time like 2017-01-31T18:30:00Z";
    rejects(row_with(3, "2017-02-30T12:00:00Z"), "placed_at", reason);
    let reason = "\"2017-01-01\" is no time like 2017-01-31T18:30:00Z";
    rejects(row_with(3, "2017-01-01"), "placed_at", reason);
}

#[test]
fn a_missing_field() {
    rejects("5,7,3,2017-01-01T12:00:00Z,55\n", "product", "the row has 5 fields, the header has 10");
    rejects("5\n", "customer_id", "the row has 1 field, the header has 10");
}

#[test]
fn a_field_too_many() {
    let bad = "5,7,3,2017-01-01T12:00:00Z,55,BREAD, SLICED,BAKERY,2,598,10\n";
    rejects(bad, "row", "the row has 11 fields, the header has 10");
}

#[test]
fn bytes_that_are_not_utf_8() {
    rejects(row_with(5, b"CR\xc8ME"), "product", "is not UTF-8");
}

#[test]
fn a_nul() {
    rejects(row_with(6, b"BAK\0ERY"), "department", "holds a NUL");
}

#[test]
fn rows_that_disagree() {
    let differs = |first| format!("differs from the order's first row, which has {first}");
    for (column, value, field, first) in [
        (1, "8", "customer_id", "7"),
        (2, "4", "store_id", "3"),
        (3, "2017-01-01T12:00:01Z", "placed_at", "2017-01-01T12:00:00+00:00"),
    ] {
        let entries = read(file([row(5).into_bytes(), row_with(column, value), row(6).into_bytes()]));

        assert_eq!(rejected(&entries), [rejection(3, 5, field, &differs(first))]);
        assert_eq!(accepted(&entries), [(6, 1)]);
    }
}

#[test]
fn an_order_without_a_line_left() {
    let entries = read(file([row_with(7, "0"), row_with(7, "0"), row(6).into_bytes()]));

    let reason = "the order has no line left: every quantity is 0";
    assert_eq!(rejected(&entries), [Rejection { lines_dropped: 2, ..rejection(2, 5, "quantity", reason) }]);
    assert_eq!(accepted(&entries), [(6, 1)]);
}

#[test]
fn lines_of_quantity_0_are_dropped_and_counted() {
    let entries = read(file([row_with(7, "0"), row(5).into_bytes()]));

    assert_eq!(accepted(&entries), [(5, 1)]);
    let order = order(&entries[0]).unwrap();
    assert_eq!((order.lines_dropped, order.purchase.amount_cents), (1, 598));
}

#[test]
fn an_order_that_is_too_dear() {
    let dear = || row_with(8, "60000000000");
    let entries = read(file([dear(), dear(), row(6).into_bytes()]));

    let reason = "the order comes to more than a billion dollars";
    assert_eq!(rejected(&entries), [rejection(2, 5, "amount_cents", reason)]);
    assert_eq!(accepted(&entries), [(6, 1)]);
}

#[test]
fn an_order_that_is_too_long() {
    let rows = (0..40_000).map(|_| row(5)).chain([row(6)]);

    let entries = read(file(rows));

    assert_eq!(rejected(&entries).len(), 1);
    assert_eq!(rejected(&entries)[0].fault, Fault::new("row", "the order has too many rows: more than 1 MiB"));
    assert_eq!(accepted(&entries), [(6, 1)]);
}

#[test]
fn a_quote_that_is_not_closed() {
    rejects(row_with(5, "\"BREAD"), "row", "a quote is not closed");
}

#[test]
fn text_behind_a_closing_quote() {
    rejects(row_with(5, "\"BREAD\" AND MORE"), "row", "text follows a closing quote");
}

#[test]
fn a_line_of_absurd_length() {
    rejects(row_with(5, "X".repeat(1_000_000)), "row", "the record is longer than 65536 bytes");
    rejects(row_with(5, format!("\"{}", "X".repeat(1_000_000))), "row", "a quote is not closed");
}

#[test]
fn a_row_of_no_order_stands_alone() {
    let entries = read(file([row(4).into_bytes(), row_with(0, "5x"), row(6).into_bytes()]));

    assert_eq!(rejected(&entries), [rejection(3, None, "order_id", "\"5x\" is not a whole number")]);
    assert_eq!(accepted(&entries), [(4, 1), (6, 1)]);
}

#[test]
fn a_row_of_no_order_among_the_rows_of_one_belongs_to_it() {
    let entries = read(file([row(5).into_bytes(), row_with(0, ""), row(5).into_bytes(), row(6).into_bytes()]));

    assert_eq!(rejected(&entries), [rejection(3, 5, "order_id", "is empty")]);
    assert_eq!(accepted(&entries), [(6, 1)]);
}

#[test]
fn rows_of_a_rejected_order_that_come_later_are_rejected_too() {
    let entries = read(file([row_with(7, "-1"), row(6).into_bytes(), row(5).into_bytes()]));

    let again = rejection(4, 5, "order_id", "other rows of this order were rejected before");
    assert_eq!(rejected(&entries), [rejection(2, 5, "quantity", "\"-1\" is negative"), again]);
    assert_eq!(accepted(&entries), [(6, 1)]);
}
