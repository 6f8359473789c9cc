//! The rules, one test a row or a few of them.

use annals::testing::given;

use super::{OrderCommand::*, OrderEvent::*, *};

const ADA: CustomerId = CustomerId(7);
const CORNER: StoreId = StoreId(3);

fn line(sku: i64, quantity: i64, amount_cents: i64) -> Line {
    Line {
        sku: Sku(sku),
        product: format!("product {sku}"),
        department: "GROCERY".into(),
        quantity,
        amount_cents,
        discount_cents: 0,
    }
}

/// A purchase at the time of the kit.
fn purchase(lines: impl Into<Vec<Line>>) -> Purchase {
    Purchase::new(ADA, CORNER, "2026-01-01T00:00:00Z".parse().unwrap(), lines.into()).unwrap()
}

fn bread() -> Purchase {
    purchase([line(1, 2, 598)])
}

fn bread_and_milk() -> Purchase {
    purchase([line(1, 2, 598), line(2, 1, 129)])
}

fn place(lines: impl Into<Vec<Line>>) -> OrderCommand {
    Place { customer: ADA, store: CORNER, lines: lines.into() }
}

fn cancel() -> OrderCommand {
    Cancel { reason: "found it cheaper".into() }
}

fn confirmed() -> OrderEvent {
    OrderConfirmed { customer: ADA }
}

fn shipped() -> OrderEvent {
    OrderShipped { customer: ADA }
}

fn cancelled(purchase: Purchase) -> OrderEvent {
    OrderCancelled { purchase, reason: "found it cheaper".into() }
}

/// Bread that was bought online.
fn online() -> Purchase {
    Purchase { store: StoreId::ONLINE, ..bread() }
}

fn give_back() -> OrderCommand {
    Return { reason: "too dry".into() }
}

fn returned() -> OrderEvent {
    OrderReturned { purchase: online(), reason: "too dry".into() }
}

fn record_refund(refund: &str) -> OrderCommand {
    RecordRefund { refund: refund.into(), cents: 598 }
}

fn refunded() -> OrderEvent {
    OrderRefunded { customer: ADA, refund: "refund-1".into(), cents: 598 }
}

#[test]
fn a_new_order_can_be_placed() {
    given::<Order>([]).when(place(bread().lines)).then([OrderPlaced(bread())]);
}

#[test]
fn placing_again_changes_nothing() {
    given::<Order>([OrderPlaced(bread())]).when(place(bread().lines)).then_nothing();
    given::<Order>([OrderPlaced(bread()), confirmed()]).when(place(bread().lines)).then_nothing();
}

#[test]
fn an_id_is_placed_once() {
    let history = [OrderPlaced(bread())];
    given::<Order>(history.clone()).when(place(bread_and_milk().lines)).then_rejected(OrderError::PlacedBefore);
    let other = Place { customer: CustomerId(8), store: CORNER, lines: bread().lines };
    given::<Order>(history).when(other).then_rejected(OrderError::PlacedBefore);
    given::<Order>([PastOrderRecorded(bread())]).when(place(bread().lines)).then_rejected(OrderError::PlacedBefore);
}

#[test]
fn an_order_has_lines_that_make_sense() {
    given::<Order>([]).when(place([])).then_rejected(OrderError::NoLines);
    let bad = OrderError::BadLine { sku: Sku(1) };
    given::<Order>([]).when(place([line(1, 0, 100)])).then_rejected(bad.clone());
    given::<Order>([]).when(place([line(1, -1, 100)])).then_rejected(bad.clone());
    given::<Order>([]).when(place([line(1, 1, -100)])).then_rejected(bad);
    let dear = [line(1, 1, MAX_ORDER_CENTS), line(2, 1, 1)];
    given::<Order>([]).when(place(dear)).then_rejected(OrderError::TooLarge);
    given::<Order>([]).when(place([line(1, 1, i64::MAX), line(2, 1, 1)])).then_rejected(OrderError::TooLarge);
}

#[test]
fn lines_change_while_the_order_is_open() {
    let history = [OrderPlaced(bread())];
    let change = ChangeLines { lines: bread_and_milk().lines };
    given::<Order>(history.clone())
        .when(change.clone())
        .then([LinesChanged { before: bread(), after: bread_and_milk() }]);
    given::<Order>(history.clone()).when(ChangeLines { lines: bread().lines }).then_nothing();
    given::<Order>(history).when(ChangeLines { lines: vec![] }).then_rejected(OrderError::NoLines);
    given::<Order>([OrderPlaced(bread()), confirmed()]).when(change).then_rejected(OrderError::Confirmed);
}

#[test]
fn an_open_order_is_confirmed_once() {
    given::<Order>([OrderPlaced(bread())]).when(Confirm).then([confirmed()]);
    given::<Order>([OrderPlaced(bread()), confirmed()]).when(Confirm).then_nothing();
    given::<Order>([OrderPlaced(bread()), confirmed(), shipped()]).when(Confirm).then_nothing();
}

#[test]
fn only_a_confirmed_order_is_shipped() {
    given::<Order>([OrderPlaced(bread()), confirmed()]).when(Ship).then([shipped()]);
    given::<Order>([OrderPlaced(bread()), confirmed(), shipped()]).when(Ship).then_nothing();
    given::<Order>([OrderPlaced(bread())]).when(Ship).then_rejected(OrderError::NotConfirmed);
}

#[test]
fn an_order_can_be_cancelled_until_it_is_shipped() {
    given::<Order>([OrderPlaced(bread())]).when(cancel()).then([cancelled(bread())]);
    given::<Order>([OrderPlaced(bread()), confirmed()]).when(cancel()).then([cancelled(bread())]);
    given::<Order>([OrderPlaced(bread()), confirmed(), shipped()]).when(cancel()).then_rejected(OrderError::Shipped);
    given::<Order>([OrderPlaced(bread()), cancelled(bread())]).when(cancel()).then_nothing();
}

#[test]
fn a_cancellation_carries_the_order_as_it_was_last() {
    let history = [OrderPlaced(bread()), LinesChanged { before: bread(), after: bread_and_milk() }];
    given::<Order>(history).when(cancel()).then([cancelled(bread_and_milk())]);
}

#[test]
fn nothing_happens_to_an_order_that_is_not_there() {
    for command in
        [Confirm, Ship, cancel(), ChangeLines { lines: bread().lines }, give_back(), record_refund("refund-1")]
    {
        given::<Order>([]).when(command).then_rejected(OrderError::NotPlaced);
    }
}

#[test]
fn a_cancelled_order_stays_cancelled() {
    let history = [OrderPlaced(bread()), cancelled(bread())];
    for command in [Confirm, Ship, ChangeLines { lines: bread().lines }, give_back(), record_refund("refund-1")] {
        given::<Order>(history.clone()).when(command).then_rejected(OrderError::Cancelled);
    }
    given::<Order>(history).when(place(bread().lines)).then_rejected(OrderError::PlacedBefore);
}

#[test]
fn a_past_order_is_recorded_once() {
    given::<Order>([]).when(RecordPast(bread())).then([PastOrderRecorded(bread())]);
    given::<Order>([PastOrderRecorded(bread())]).when(RecordPast(bread())).then_nothing();
}

#[test]
fn a_past_order_with_other_contents_is_refused() {
    let later = Purchase { placed_at: bread().placed_at + chrono::TimeDelta::seconds(1), ..bread() };
    for history in [PastOrderRecorded(bread()), OrderPlaced(bread())] {
        for past in [bread_and_milk(), later.clone()] {
            given::<Order>([history.clone()]).when(RecordPast(past)).then_rejected(OrderError::OtherContents);
        }
    }
}

#[test]
fn a_past_order_adds_up() {
    let wrong = Purchase { amount_cents: 1, ..bread() };
    given::<Order>([]).when(RecordPast(wrong)).then_rejected(OrderError::WrongTotal);
    let empty = Purchase { lines: vec![], ..bread() };
    given::<Order>([]).when(RecordPast(empty)).then_rejected(OrderError::NoLines);
}

#[test]
fn a_past_order_is_finished() {
    for command in
        [Confirm, Ship, cancel(), ChangeLines { lines: bread().lines }, give_back(), record_refund("refund-1")]
    {
        given::<Order>([PastOrderRecorded(bread())]).when(command).then_rejected(OrderError::Past);
    }
}

#[test]
fn what_is_paid_for_is_delivered_at_once_unless_the_order_is_another_by_now() {
    let deliver = || Deliver { lines: bread().lines };
    given::<Order>([OrderPlaced(bread())]).when(deliver()).then([confirmed(), shipped()]);
    given::<Order>([OrderPlaced(bread()), confirmed()]).when(deliver()).then([shipped()]);
    given::<Order>([OrderPlaced(bread()), confirmed(), shipped()]).when(deliver()).then_nothing();
    let changed = LinesChanged { before: bread(), after: bread_and_milk() };
    given::<Order>([OrderPlaced(bread()), changed]).when(deliver()).then_rejected(OrderError::Changed);
    given::<Order>([OrderPlaced(bread()), cancelled(bread())]).when(deliver()).then_rejected(OrderError::Cancelled);
    given::<Order>([]).when(deliver()).then_rejected(OrderError::NotPlaced);
}

#[test]
fn what_has_left_can_be_returned_once() {
    let shipped = || vec![OrderPlaced(online()), confirmed(), shipped()];
    given::<Order>(shipped()).when(give_back()).then([returned()]);
    let after = || [shipped(), vec![returned()]].concat();
    given::<Order>(after()).when(give_back()).then_nothing();
    given::<Order>(after()).when(Return { reason: "too old".into() }).then_nothing();
    given::<Order>([after(), vec![refunded()]].concat()).when(give_back()).then_nothing();
}

#[test]
fn what_has_not_left_or_was_bought_in_a_store_is_not_returned() {
    given::<Order>([OrderPlaced(online())]).when(give_back()).then_rejected(OrderError::NotShipped);
    given::<Order>([OrderPlaced(online()), confirmed()]).when(give_back()).then_rejected(OrderError::NotShipped);
    given::<Order>([OrderPlaced(bread()), confirmed(), shipped()]).when(give_back()).then_rejected(OrderError::InStore);
}

#[test]
fn a_returned_order_is_paid_back_once() {
    let history = || vec![OrderPlaced(online()), confirmed(), shipped(), returned()];
    given::<Order>(history()).when(record_refund("refund-1")).then([refunded()]);
    let after = || [history(), vec![refunded()]].concat();
    given::<Order>(after()).when(record_refund("refund-1")).then_nothing();
    given::<Order>(after())
        .when(record_refund("refund-2"))
        .then_rejected(OrderError::RefundedBefore { refund: "refund-1".into() });
    for history in [&history()[..1], &history()[..2], &history()[..3]] {
        given::<Order>(history.to_vec()).when(record_refund("refund-1")).then_rejected(OrderError::NotReturned);
    }
}

#[test]
fn a_returned_order_stays_returned() {
    let returned = vec![OrderPlaced(online()), confirmed(), shipped(), returned()];
    for history in [returned.clone(), [returned, vec![refunded()]].concat()] {
        for command in [Confirm, Ship, Deliver { lines: bread().lines }] {
            given::<Order>(history.clone()).when(command).then_nothing();
        }
        for command in [cancel(), ChangeLines { lines: bread_and_milk().lines }] {
            given::<Order>(history.clone()).when(command).then_rejected(OrderError::Returned);
        }
        given::<Order>(history.clone()).when(place(bread().lines)).then_rejected(OrderError::PlacedBefore);
        given::<Order>(history).when(RecordPast(bread())).then_rejected(OrderError::OtherContents);
    }
}
