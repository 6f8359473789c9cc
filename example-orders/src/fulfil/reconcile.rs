//! What the log says was charged, shipped, told, returned and kept, beside the gateway's books and the stock's own events.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
};

use annals::{Aggregate, App, BoxError, Expectation, Outcome, ReadLog, Recorded, Saga, SagaEvent};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::{
    figures::{count, dollars},
    gateway::{Charge, Client, Ledger, Shipment},
    order::{Order, OrderEvent, OrderId, Sku},
    sagas::{Fulfilment, Refund, ToFulfil, message, products},
    stock::{Stock, StockEvent},
    tables::table,
};

/// What was compared, and what does not agree.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Reconciled {
    pub(crate) orders: usize,
    pub(crate) completed: usize,
    pub(crate) compensated: usize,
    pub(crate) stuck: usize,
    pub(crate) running: usize,
    /// By the gateway's books.
    pub(crate) charged_cents: i64,
    pub(crate) refunded_cents: i64,
    /// Order by order, to the cent; shipments, too.
    pub(crate) ledger_equal: bool,
    pub(crate) stock_equal: bool,
    /// Whether each customer was told what the log says, and once.
    #[serde(skip)]
    pub(crate) messages_equal: bool,
    pub(crate) differences: Vec<String>,
    /// What agrees only because an operator said that it is seen to.
    #[serde(skip)]
    pub(crate) by_hand: Vec<String>,
}

/// Where an instance of a saga stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stand {
    #[default]
    Running,
    Stuck,
    Completed,
    Compensated,
}

/// What the log says of one order and its fulfilment.
#[derive(Debug, Default)]
struct Told {
    stand: Stand,
    products: BTreeMap<Sku, i64>,
    charge: Option<Charge>,
    refunded: bool,
    /// Whether an operator had the refund left out.
    unrefunded: bool,
    /// Whether an operator has declared it ended.
    resolved: bool,
    shipment: Option<Shipment>,
    shipment_cancelled: bool,
    /// Where the expectation of a refund stands; none while nobody expects one.
    refund: Option<Stand>,
    returned: bool,
    /// What was paid back for the return.
    paid_back: Option<i64>,
    /// What the customer is to be told.
    messages: Vec<String>,
}

/// What the gateway's books say of one order.
#[derive(Debug, Default)]
struct Booked<'a> {
    charges: Vec<&'a Charge>,
    /// The cents of each.
    refunds: Vec<i64>,
    shipments: Vec<&'a Shipment>,
    messages: Vec<&'a str>,
}

/// Compares the log with the books of the gateway and with the stock: of `only` these orders, or of all.
///
/// An order that is still under way may be further outside than in the log: of it only what the log says is looked for. Of `only`
/// these orders, every customer must have been told by now; of all, some may be told later, or never, if that is no news any more.
///
/// # Errors
/// Postgres or the gateway cannot be asked, or an event cannot be read.
pub(crate) async fn reconcile(
    app: &App,
    gateway: &Client,
    only: Option<&BTreeSet<OrderId>>,
) -> Result<Reconciled, BoxError> {
    // What is in the books before the log is read must be in the log; what is in the log must be in the books after that.
    let before = gateway.ledger().await?;
    let refunded = before.refunds.iter().map(|refund| (&*refund.order, "paid back"));
    let known: BTreeMap<&str, &str> =
        refunded.chain(before.charges.iter().map(|charge| (&*charge.order, "charged"))).collect();
    let told = orders(app, only).await?;
    let ledger = gateway.ledger().await?;
    let held = stock(app, only).await?;

    let mut found = Reconciled { orders: told.len(), ..Reconciled::default() };
    let (mut money, mut goods, mut messages) = (vec![], vec![], vec![]);
    let (booked, sent) = (booked(&ledger), booked(&before));
    let none = Booked::default();
    for (order, told) in &told {
        *match told.stand {
            Stand::Running => &mut found.running,
            Stand::Stuck => &mut found.stuck,
            Stand::Completed => &mut found.completed,
            Stand::Compensated => &mut found.compensated,
        } += 1;
        let booked = booked.get(&*order.to_string()).unwrap_or(&none);
        found.charged_cents += booked.charged();
        found.refunded_cents += booked.refunds.iter().sum::<i64>();
        let kept = told.keeps_by_hand(booked);
        found.by_hand.extend(kept.map(|what| format!("order {order}: {what}")));
        money.extend(told.differs_from(booked).map(|what| format!("order {order}: {what}")));
        let sent = sent.get(&*order.to_string()).unwrap_or(&none);
        messages.extend(told.tells_otherwise(sent, only.is_some()).map(|what| format!("order {order}: {what}")));
        let keeps = told.stand == Stand::Completed && !told.returned;
        let should = if keeps { told.products.clone() } else { BTreeMap::new() };
        let holds = held.by_order.get(order).cloned().unwrap_or_default();
        if told.is_over() && !told.is_coming_back() && holds != should {
            goods.push(format!("order {order}: it is to hold {}, and holds {}", listed(&should), listed(&holds)));
        }
    }
    if only.is_none() {
        let strangers =
            known.iter().filter(|(order, _)| order.parse().ok().is_none_or(|id| !told.contains_key(&OrderId(id))));
        money.extend(
            strangers.map(|(order, what)| format!("order {order}: it was {what}, and the log does not know of it")),
        );
        let strangers = held.by_order.keys().filter(|order| !told.contains_key(order));
        goods.extend(strangers.map(|order| format!("order {order}: it holds goods, and the log does not know of it")));
    }
    goods.extend(
        held.free.iter().filter(|(_, free)| **free < 0).map(|(sku, free)| format!("product {sku}: {free} are free")),
    );
    (found.ledger_equal, found.stock_equal) = (money.is_empty(), goods.is_empty());
    found.messages_equal = messages.is_empty();
    found.differences = [money, goods, messages].concat();
    Ok(found)
}

/// What the log says of each order that is, or was, fulfilled.
async fn orders(app: &App, only: Option<&BTreeSet<OrderId>>) -> Result<BTreeMap<OrderId, Told>, BoxError> {
    let (fulfilment, refund) = (format!("${}", Fulfilment::NAME), format!("${}", Refund::NAME));
    let read = ReadLog {
        categories: vec![Order::TYPE.into(), fulfilment, refund.clone()],
        skipped_types: ["OrderPlaced", "LinesChanged", "OrderConfirmed", "PastOrderRecorded"].map(Into::into).into(),
        ..ReadLog::default()
    };
    let mut events = pin!(app.store().read_log(read));
    let mut told: BTreeMap<OrderId, Told> = BTreeMap::new();
    while let Some(stored) = events.try_next().await? {
        let Ok(order) = stored.stream.id().parse().map(OrderId) else { continue };
        if only.is_some_and(|only| !only.contains(&order)) {
            continue;
        }
        let told = told.entry(order).or_default();
        match stored.stream.category() {
            Order::TYPE => told.hear(&app.decode::<OrderEvent>(&stored)?),
            category if category == refund => told.refund = Some(Stand::behind(&app.decode(&stored)?.event)),
            _ => told.take(&app.decode::<SagaEvent>(&stored)?.event)?,
        }
    }
    // What is bought in a store is paid there.
    told.retain(|_, told| !told.products.is_empty());
    Ok(told)
}

/// What is held and what is free, by the stock's events.
#[derive(Debug, Default)]
struct Held {
    by_order: BTreeMap<OrderId, BTreeMap<Sku, i64>>,
    free: BTreeMap<Sku, i64>,
}

async fn stock(app: &App, only: Option<&BTreeSet<OrderId>>) -> Result<Held, BoxError> {
    let read = ReadLog { categories: vec![Stock::TYPE.into()], ..ReadLog::default() };
    let mut events = pin!(app.store().read_log(read));
    let mut held = Held::default();
    while let Some(stored) = events.try_next().await? {
        let Ok(sku) = stored.stream.id().parse().map(Sku) else { continue };
        let free = held.free.entry(sku).or_default();
        let (order, change) = match app.decode::<StockEvent>(&stored)?.event {
            StockEvent::Received { quantity } => {
                *free += quantity;
                continue;
            }
            StockEvent::Reserved { order, quantity } => (order, quantity),
            StockEvent::Released { order, quantity } => (order, -quantity),
        };
        *free -= change;
        if only.is_none_or(|only| only.contains(&order)) {
            let holds = held.by_order.entry(order).or_default();
            *holds.entry(sku).or_default() += change;
            holds.retain(|_, quantity| *quantity != 0);
        }
    }
    held.by_order.retain(|_, holds| !holds.is_empty());
    Ok(held)
}

fn booked(ledger: &Ledger) -> HashMap<&str, Booked<'_>> {
    let mut booked: HashMap<&str, Booked<'_>> = HashMap::new();
    for charge in &ledger.charges {
        booked.entry(&charge.order).or_default().charges.push(charge);
    }
    for refund in &ledger.refunds {
        booked.entry(&refund.order).or_default().refunds.push(refund.cents);
    }
    for shipment in ledger.shipments.iter().filter(|shipment| !shipment.cancelled) {
        booked.entry(&shipment.order).or_default().shipments.push(shipment);
    }
    for message in &ledger.messages {
        booked.entry(&message.order).or_default().messages.push(&message.text);
    }
    booked
}

impl Booked<'_> {
    fn charged(&self) -> i64 {
        self.charges.iter().map(|charge| charge.cents).sum()
    }
}

impl Stand {
    /// Where an instance stands behind `event`.
    fn behind(event: &SagaEvent) -> Self {
        match event {
            SagaEvent::SagaStuck { .. } => Self::Stuck,
            SagaEvent::SagaCompleted | SagaEvent::SagaResolved { outcome: Outcome::Completed, .. } => Self::Completed,
            SagaEvent::SagaCompensated { .. } | SagaEvent::SagaResolved { outcome: Outcome::Compensated, .. } => {
                Self::Compensated
            }
            _ => Self::Running,
        }
    }
}

impl Told {
    /// What happened to the order.
    fn hear(&mut self, recorded: &Recorded<OrderEvent>) {
        self.messages.extend(message(recorded).map(|message| message.text));
        match &recorded.event {
            OrderEvent::OrderReturned { .. } => self.returned = true,
            OrderEvent::OrderRefunded { cents, .. } => self.paid_back = Some(*cents),
            _ => {}
        }
    }

    /// What happened to its fulfilment.
    fn take(&mut self, event: &SagaEvent) -> Result<(), BoxError> {
        let stand = Stand::behind(event);
        // What comes late opens neither what an operator has ended nor what is completed.
        let stays = self.resolved || (self.stand, stand) == (Stand::Completed, Stand::Running);
        match event {
            SagaEvent::SagaStarted { input, .. } => self.products = products(&ToFulfil::deserialize(input)?.lines),
            SagaEvent::StepCompleted { step, output, .. } if step == "pay" => {
                (self.charge, self.unrefunded) = (Some(Charge::deserialize(output)?), false);
            }
            SagaEvent::StepCompleted { step, output, .. } if step == "ship" => {
                self.shipment = Some(Shipment::deserialize(output)?);
            }
            SagaEvent::StepUndone { step } if step == "pay" => self.refunded = true,
            // What was left out before that stays done, and is undone.
            SagaEvent::UndoBegan { .. } => self.unrefunded = false,
            SagaEvent::StepSkipped { step, .. } if step == "pay" => self.unrefunded = self.charge.is_some(),
            SagaEvent::StepUndone { step } if step == "ship" => self.shipment_cancelled = true,
            SagaEvent::SagaResolved { .. } => self.resolved = true,
            _ => {}
        }
        if !stays {
            self.stand = stand;
        }
        Ok(())
    }

    /// Whether the fulfilment has ended.
    fn is_over(&self) -> bool {
        matches!(self.stand, Stand::Completed | Stand::Compensated)
    }

    /// Whether it was returned, and has time left to be paid back.
    fn is_coming_back(&self) -> bool {
        self.returned && self.refund == Some(Stand::Running)
    }

    /// What the books say otherwise, if they do.
    fn differs_from(&self, booked: &Booked<'_>) -> Option<String> {
        if booked.charges.len() > 1 {
            return Some(format!("it was charged {} times", booked.charges.len()));
        }
        let is_over = self.is_over();
        let charged = booked.charges.first().copied();
        if self.charge.as_ref() != charged && (is_over || self.charge.is_some()) {
            let cents = |charge: Option<&Charge>| charge.map_or("nothing".into(), |charge| dollars(charge.cents));
            let (log, books) = (cents(self.charge.as_ref()), cents(charged));
            return Some(format!("{log} was charged by the log, {books} by the books"));
        }
        if let Some(what) = self.pays_back_otherwise(booked) {
            return Some(what);
        }
        let shipped = self.shipment.as_ref().filter(|_| !self.shipment_cancelled).map(|shipment| &shipment.id);
        let booked: Vec<&String> = booked.shipments.iter().map(|shipment| &shipment.id).collect();
        if is_over && booked != Vec::from_iter(shipped) {
            return Some(format!("shipment {shipped:?} by the log, {booked:?} by the books"));
        }
        None
    }

    /// What the books say otherwise of the money that went back, if they do.
    fn pays_back_otherwise(&self, booked: &Booked<'_>) -> Option<String> {
        let charged = booked.charged();
        let refund = match booked.refunds[..] {
            [] => None,
            [cents] => Some(cents),
            ref refunds => return Some(format!("it was given back {} times by the books", refunds.len())),
        };
        let by_log = self.refunded || self.paid_back.is_some();
        let is_under_way = if self.returned { self.is_coming_back() } else { !self.is_over() };
        let what = match (by_log, refund) {
            (_, Some(cents)) if booked.charges.is_empty() => {
                format!("{} was given back by the books, and nothing was charged", dollars(cents))
            }
            (_, Some(cents)) if cents > charged => {
                format!("{} was charged by the books, and {} given back", dollars(charged), dollars(cents))
            }
            (true, None) => "it was given back by the log, kept by the books".into(),
            (true, Some(books)) => {
                // What is undone is given back whole.
                let log = self.paid_back.unwrap_or(charged);
                if log == books {
                    return None;
                }
                format!("{} was paid back by the log, {} by the books", dollars(log), dollars(books))
            }
            (false, _) if is_under_way => return None,
            (false, Some(_)) if self.returned => {
                "it was paid back by the books, and the log does not know of it".into()
            }
            // Somebody has seen to it outside; what he has kept is shown.
            (false, _) if self.is_undone_by_hand() => return None,
            (false, Some(_)) => "it was given back by the books, and neither undone nor returned by the log".into(),
            // That an operator has declared the refund ended is an end.
            (false, None) if self.returned && matches!(self.refund, None | Some(Stand::Stuck)) => {
                "it was returned, and is not paid back".into()
            }
            (false, None) if self.stand == Stand::Compensated && charged > 0 => {
                format!("it was undone, and {} was kept", dollars(charged))
            }
            (false, None) => return None,
        };
        Some(what)
    }

    /// Whether the money was not given back by the saga because an operator has said so.
    fn is_undone_by_hand(&self) -> bool {
        self.stand == Stand::Compensated && !self.refunded && (self.unrefunded || self.resolved)
    }

    /// What was kept of it although it is undone, as an operator wanted it.
    fn keeps_by_hand(&self, booked: &Booked<'_>) -> Option<String> {
        let kept = booked.charged() - booked.refunds.iter().sum::<i64>();
        (self.is_undone_by_hand() && kept > 0)
            .then(|| format!("it was undone by an operator's word, and {} was kept", dollars(kept)))
    }

    /// What the customer was told otherwise, if so. `all` says whether there is nothing left to tell.
    fn tells_otherwise(&self, sent: &Booked<'_>, all: bool) -> Option<String> {
        let mut missing = self.messages.clone();
        for text in &sent.messages {
            match missing.iter().position(|message| message == text) {
                Some(nth) => drop(missing.remove(nth)),
                None => return Some(format!("the customer was told, more often than the log says: {text}")),
            }
        }
        let untold = missing.first().filter(|_| all)?;
        Some(format!("the customer was not told: {untold}"))
    }
}

impl Reconciled {
    /// Whether the log, the books, the stock and what customers were told agree.
    pub(crate) fn agrees(&self) -> bool {
        self.ledger_equal && self.stock_equal && self.messages_equal
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut table = table(["orders", "completed", "compensated", "stuck", "running", "charged", "refunded"]);
        let figures = [self.orders, self.completed, self.compensated, self.stuck, self.running];
        let [orders, completed, compensated, stuck, running] = figures.map(|figure| count(figure as i64));
        let (charged, refunded) = (dollars(self.charged_cents), dollars(self.refunded_cents));
        table.add_row([orders, completed, compensated, stuck, running, charged, refunded]);
        let word = |equal: bool| if equal { "agree" } else { "do not agree" };
        let (money, goods) = (word(self.ledger_equal), word(self.stock_equal));
        let told = word(self.messages_equal);
        let mut text = format!("{table}\nthe log and the gateway's books {money}; the log and the stock {goods}; ");
        text.push_str(&format!("the log and what customers were told {told}"));
        for line in self.differences.iter().chain(&self.by_hand) {
            text.push_str("\n   ");
            text.push_str(line);
        }
        text
    }
}

fn listed(products: &BTreeMap<Sku, i64>) -> String {
    if products.is_empty() {
        return "nothing".into();
    }
    let products: Vec<String> = products.iter().map(|(sku, quantity)| format!("{quantity} of {sku}")).collect();
    products.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn charge(cents: i64) -> Charge {
        Charge { id: "charge-1".into(), order: "1".into(), cents }
    }

    fn paid(cents: i64) -> SagaEvent {
        let output = serde_json::to_value(charge(cents)).unwrap();
        SagaEvent::StepCompleted { step: "pay".into(), output, by_hand: None }
    }

    fn refunded() -> SagaEvent {
        SagaEvent::StepUndone { step: "pay".into() }
    }

    fn skipped() -> SagaEvent {
        SagaEvent::StepSkipped { step: "pay".into(), reason: "seen to".into() }
    }

    fn resolved(outcome: Outcome) -> SagaEvent {
        SagaEvent::SagaResolved { outcome, reason: "seen to".into() }
    }

    fn undone() -> SagaEvent {
        SagaEvent::SagaCompensated { reason: "no lorry".into() }
    }

    fn told(events: impl IntoIterator<Item = SagaEvent>) -> Told {
        let mut told = Told::default();
        events.into_iter().for_each(|event| told.take(&event).unwrap());
        told
    }

    /// What is found of `events` beside books with these charges and refunds.
    fn found(events: impl IntoIterator<Item = SagaEvent>, charges: &[i64], refunds: &[i64]) -> Option<String> {
        let charges: Vec<Charge> = charges.iter().map(|cents| charge(*cents)).collect();
        let booked = Booked { charges: charges.iter().collect(), refunds: refunds.to_vec(), ..Booked::default() };
        told(events).differs_from(&booked)
    }

    #[test]
    fn what_the_saga_undoes_is_given_back_whole_and_once() {
        let undone = || [paid(598), refunded(), undone()];

        assert_eq!(found(undone(), &[598], &[598]), None);
        assert_eq!(found(undone(), &[598], &[]).unwrap(), "it was given back by the log, kept by the books");
        let less = found(undone(), &[598], &[500]).unwrap();
        assert_eq!(less, "$5.98 was paid back by the log, $5.00 by the books");
        assert_eq!(found(undone(), &[598], &[299, 299]).unwrap(), "it was given back 2 times by the books");
        // While more is undone, too.
        assert!(found([paid(598), refunded()], &[598], &[500]).is_some());
    }

    #[test]
    fn what_is_undone_and_kept_is_a_difference_unless_an_operator_has_seen_to_it() {
        let kept = |events: &[SagaEvent]| {
            let charge = charge(598);
            let booked = Booked { charges: vec![&charge], ..Booked::default() };
            let told = told(events.iter().cloned());
            (told.differs_from(&booked), told.keeps_by_hand(&booked))
        };
        let found = Some("it was undone, and $5.98 was kept".to_owned());
        let seen_to = Some("it was undone by an operator's word, and $5.98 was kept".to_owned());

        assert_eq!(kept(&[paid(598), undone()]), (found.clone(), None));
        assert_eq!(kept(&[paid(598), skipped(), undone()]), (None, seen_to.clone()));
        assert_eq!(kept(&[paid(598), resolved(Outcome::Compensated)]), (None, seen_to.clone()));
        // It came late: nobody undoes it any more.
        assert_eq!(kept(&[resolved(Outcome::Compensated), paid(598)]), (None, seen_to.clone()));
        // What was left out was the payment, not its undo.
        assert_eq!(kept(&[skipped(), paid(598), undone()]), (found.clone(), None));
        let undo = SagaEvent::UndoBegan { step: None, reason: "no lorry".into(), abandoned: vec![] };
        assert_eq!(kept(&[paid(598), skipped(), undo.clone(), undone()]), (found, None));
        assert_eq!(kept(&[paid(598), undo, skipped(), undone()]), (None, seen_to));
        let unpaid = kept(&[skipped(), undone()]);
        assert_eq!(unpaid, (Some("nothing was charged by the log, $5.98 by the books".into()), None));
        assert_eq!(kept(&[paid(598), resolved(Outcome::Completed)]), (None, None));
        assert_eq!(kept(&[paid(598)]), (None, None));
    }

    #[test]
    fn what_an_operator_has_undone_by_hand_may_be_in_the_books_and_not_more_of_it() {
        let skipped = || [paid(598), skipped(), undone()];

        assert_eq!(found(skipped(), &[598], &[598]), None);
        assert_eq!(found(skipped(), &[598], &[599]).unwrap(), "$5.98 was charged by the books, and $5.99 given back");
        let completed = found([paid(598), SagaEvent::SagaCompleted], &[598], &[598]).unwrap();
        assert_eq!(completed, "it was given back by the books, and neither undone nor returned by the log");
    }

    #[test]
    fn no_more_is_given_back_than_was_charged_whatever_the_log_says() {
        let started = || {
            let input = json!({"order": 1, "lines": [], "cents": 598});
            [SagaEvent::SagaStarted { definition: 1, input, steps: vec![] }]
        };

        assert_eq!(found(started(), &[598], &[598]), None);
        assert_eq!(found(started(), &[598], &[600]).unwrap(), "$5.98 was charged by the books, and $6.00 given back");
        assert_eq!(
            found(started(), &[], &[598]).unwrap(),
            "$5.98 was given back by the books, and nothing was charged"
        );
        assert!(found([undone()], &[], &[598]).is_some());
        let mut returned = told([paid(598), SagaEvent::SagaCompleted]);
        (returned.returned, returned.paid_back) = (true, Some(700));
        let charge = charge(598);
        let booked = Booked { charges: vec![&charge], refunds: vec![700], ..Booked::default() };
        assert!(returned.differs_from(&booked).unwrap().contains("$7.00 given back"));
    }

    #[test]
    fn people_see_what_an_operator_has_seen_to_and_whether_customers_were_told() {
        let by_hand = vec!["order 1: it was undone by an operator's word, and $5.98 was kept".into()];
        let found = Reconciled { ledger_equal: true, stock_equal: true, by_hand, ..Reconciled::default() };

        let text = found.text();

        assert!(!found.agrees() && text.contains("what customers were told do not agree\n   order 1: "), "{text}");
        assert!(!serde_json::to_string(&found).unwrap().contains("order 1"));
    }

    #[test]
    fn what_comes_late_opens_only_what_was_undone() {
        let late = |end: SagaEvent| told([end, paid(598)]).stand;

        assert_eq!(late(SagaEvent::SagaCompleted), Stand::Completed);
        assert_eq!(late(resolved(Outcome::Compensated)), Stand::Compensated);
        assert_eq!(late(undone()), Stand::Running);
        let stuck = SagaEvent::SagaStuck { step: None, reason: "it has happened twice".into(), interrupted: false };
        assert_eq!(told([SagaEvent::SagaCompleted, stuck]).stand, Stand::Stuck);
    }
}
