//! A slice of events becomes three sets of rows.

use annals::{Recorded, testing::recorded};

use super::slice::Slice;
use crate::order::{CustomerId, Line, OrderEvent, OrderEvent::*, Purchase, Sku, StoreId};

fn purchase(products: &[&str]) -> Purchase {
    let line = |product: &&str| Line {
        sku: Sku(1),
        product: product.to_string(),
        department: "GROCERY".into(),
        quantity: 1,
        amount_cents: 100,
        discount_cents: 10,
    };
    let placed_at = "2017-01-31T12:00:00Z".parse().unwrap();
    Purchase::new(CustomerId(7), StoreId(3), placed_at, products.iter().map(line).collect()).unwrap()
}

fn changed(products: &[&str]) -> OrderEvent {
    LinesChanged { before: purchase(&["PEAS"]), after: purchase(products) }
}

fn confirmed() -> OrderEvent {
    OrderConfirmed { customer: CustomerId(7) }
}

#[test]
fn new_orders_are_inserted() {
    let events = [
        recorded("order-1", PastOrderRecorded(purchase(&["PEAS", "", "MILK"]))),
        recorded("order-2", OrderPlaced(purchase(&["PEAS"]))),
    ];

    let slice = Slice::of(&events);

    assert_eq!(slice.new.ids, ["1", "2"]);
    assert_eq!(slice.new.statuses, ["past", "open"]);
    assert_eq!(slice.new.lines, [3, 1]);
    assert_eq!(slice.new.amounts, [300, 100]);
    assert_eq!(slice.new.discounts, [30, 10]);
    assert_eq!(slice.new.products, ["PEAS; MILK", "PEAS"]);
    assert!(slice.lines.ids.is_empty() && slice.statuses.ids.is_empty());
}

#[test]
fn the_last_change_of_an_order_stands() {
    let events: [Recorded<OrderEvent>; 9] = [
        recorded("order-1", OrderPlaced(purchase(&["PEAS"]))),
        recorded("order-1", changed(&["PEAS", "MILK"])),
        recorded("order-1", changed(&["MILK"])),
        recorded("order-1", confirmed()),
        recorded("order-1", OrderShipped { customer: CustomerId(7) }),
        recorded("order-2", OrderCancelled { purchase: purchase(&["PEAS"]), reason: "too cold".into() }),
        recorded("order-3", OrderShipped { customer: CustomerId(7) }),
        recorded("order-3", OrderReturned { purchase: purchase(&["PEAS"]), reason: "too cold".into() }),
        recorded("order-3", OrderRefunded { customer: CustomerId(7), refund: "refund-1".into(), cents: 100 }),
    ];

    let slice = Slice::of(&events);

    assert_eq!((slice.lines.ids, slice.lines.products), (vec!["1"], vec!["MILK".to_owned()]));
    let mut statuses: Vec<_> = slice.statuses.ids.into_iter().zip(slice.statuses.statuses).collect();
    statuses.sort();
    assert_eq!(statuses, [("1", "shipped"), ("2", "cancelled"), ("3", "returned")]);
}
