//! What the read models make of the events.

use annals::testing::{given_view, recorded};

use super::{CustomerSpend, DepartmentSales, OpenOrder, OpenOrderStatus};
use crate::order::{CustomerId, Line, OrderEvent, OrderEvent::*, Purchase, Sku, StoreId};

fn line(department: &str, amount_cents: i64) -> Line {
    let (product, department) = ("FROZEN PEAS".into(), department.into());
    Line { sku: Sku(1), product, department, quantity: 1, amount_cents, discount_cents: 0 }
}

fn purchase(lines: impl Into<Vec<Line>>) -> Purchase {
    Purchase::new(CustomerId(7), StoreId(3), "2017-01-31T23:59:59Z".parse().unwrap(), lines.into()).unwrap()
}

fn small() -> Purchase {
    purchase([line("GROCERY", 100)])
}

fn large() -> Purchase {
    purchase([line("GROCERY", 100), line("PRODUCE", 30), line("GROCERY", 5)])
}

fn changed() -> OrderEvent {
    LinesChanged { before: small(), after: large() }
}

fn cancelled(purchase: Purchase) -> OrderEvent {
    OrderCancelled { purchase, reason: "too cold".into() }
}

fn spend(orders: i64, lines: i64, amount_cents: i64) -> CustomerSpend {
    CustomerSpend { orders, lines, amount_cents }
}

fn sales(lines: i64, amount_cents: i64) -> DepartmentSales {
    DepartmentSales { lines, amount_cents }
}

#[test]
fn a_customer_has_spent_what_was_not_cancelled() {
    given_view::<CustomerSpend>([
        recorded("order-1", PastOrderRecorded(large())),
        recorded("order-2", OrderPlaced(small())),
    ])
    .then(7, spend(2, 4, 235))
    .when([recorded("order-2", changed())])
    .then(7, spend(2, 6, 270))
    .when([recorded("order-2", OrderConfirmed { customer: CustomerId(7) }), recorded("order-2", cancelled(large()))])
    .then(7, spend(1, 3, 135));
}

#[test]
fn a_customer_whose_orders_are_all_cancelled_is_gone() {
    given_view::<CustomerSpend>([recorded("order-1", OrderPlaced(small())), recorded("order-1", cancelled(small()))])
        .then_none(7);
}

#[test]
fn what_is_returned_counts_as_unsold_and_the_refund_changes_nothing_more() {
    let shipped = OrderShipped { customer: CustomerId(7) };
    let returned = OrderReturned { purchase: small(), reason: "too old".into() };
    let refunded = OrderRefunded { customer: CustomerId(7), refund: "refund-1".into(), cents: 100 };
    let events = || [OrderPlaced(small()), shipped.clone()].map(|event| recorded("order-1", event));
    let after = || [returned.clone(), refunded.clone()].map(|event| recorded("order-1", event));
    let other = || [recorded("order-2", OrderPlaced(large()))];

    given_view::<CustomerSpend>(events())
        .when(other())
        .then(7, spend(2, 4, 235))
        .when(after())
        .then(7, spend(1, 3, 135));
    given_view::<DepartmentSales>(events())
        .then("2017-01-31/GROCERY", sales(1, 100))
        .when(after())
        .then_none("2017-01-31/GROCERY");
    given_view::<OpenOrder>(events()).when(after()).then_none("1");
}

#[test]
fn a_department_sells_on_the_day_of_the_order() {
    given_view::<DepartmentSales>([recorded("order-1", PastOrderRecorded(large()))])
        .then("2017-01-31/GROCERY", sales(2, 105))
        .then("2017-01-31/PRODUCE", sales(1, 30));
}

#[test]
fn a_department_follows_changes_and_cancellations() {
    given_view::<DepartmentSales>([recorded("order-1", OrderPlaced(small())), recorded("order-1", changed())])
        .then("2017-01-31/GROCERY", sales(2, 105))
        .then("2017-01-31/PRODUCE", sales(1, 30))
        .when([recorded("order-1", cancelled(large()))])
        .then_none("2017-01-31/GROCERY")
        .then_none("2017-01-31/PRODUCE");
}

#[test]
fn an_open_order_is_there_until_it_is_shipped() {
    let expected = |status, purchase: Purchase| OpenOrder {
        status,
        customer: Some(purchase.customer),
        store: Some(purchase.store),
        placed_at: Some(purchase.placed_at),
        lines: purchase.line_count(),
        amount_cents: purchase.amount_cents,
    };
    given_view::<OpenOrder>([recorded("order-1", OrderPlaced(small()))])
        .then("1", expected(OpenOrderStatus::Open, small()))
        .when([recorded("order-1", changed())])
        .then("1", expected(OpenOrderStatus::Open, large()))
        .when([recorded("order-1", OrderConfirmed { customer: CustomerId(7) })])
        .then("1", expected(OpenOrderStatus::Confirmed, large()))
        .when([recorded("order-1", OrderShipped { customer: CustomerId(7) })])
        .then_none("1");
}

#[test]
fn orders_that_are_cancelled_or_past_are_not_open() {
    given_view::<OpenOrder>([
        recorded("order-1", PastOrderRecorded(small())),
        recorded("order-2", OrderPlaced(small())),
        recorded("order-2", cancelled(small())),
    ])
    .then_none("1")
    .then_none("2");
}
