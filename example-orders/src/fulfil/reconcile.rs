//! What the log says was charged, shipped, told, returned and kept, beside the gateway's books and the stock's own events.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
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
    refunded: bool,
    refunded_cents: i64,
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
    let known: HashSet<&str> = before.charges.iter().map(|charge| &*charge.order).collect();
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
        found.charged_cents += booked.charges.iter().map(|charge| charge.cents).sum::<i64>();
        found.refunded_cents += booked.refunded_cents;
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
            known.iter().filter(|order| order.parse().ok().is_none_or(|id| !told.contains_key(&OrderId(id))));
        money.extend(strangers.map(|order| format!("order {order}: it was charged, and the log does not know of it")));
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
        let booked = booked.entry(&refund.order).or_default();
        booked.refunded = true;
        booked.refunded_cents += refund.cents;
    }
    for shipment in ledger.shipments.iter().filter(|shipment| !shipment.cancelled) {
        booked.entry(&shipment.order).or_default().shipments.push(shipment);
    }
    for message in &ledger.messages {
        booked.entry(&message.order).or_default().messages.push(&message.text);
    }
    booked
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
        match event {
            SagaEvent::SagaStarted { input, .. } => self.products = products(&ToFulfil::deserialize(input)?.lines),
            SagaEvent::StepCompleted { step, output, .. } if step == "pay" => {
                self.charge = Some(Charge::deserialize(output)?);
            }
            SagaEvent::StepCompleted { step, output, .. } if step == "ship" => {
                self.shipment = Some(Shipment::deserialize(output)?);
            }
            SagaEvent::StepUndone { step } if step == "pay" => self.refunded = true,
            SagaEvent::StepUndone { step } if step == "ship" => self.shipment_cancelled = true,
            _ => {}
        }
        self.stand = Stand::behind(event);
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
        let by_log = self.refunded || self.paid_back.is_some();
        let is_under_way = if self.returned { self.is_coming_back() } else { !self.is_over() };
        let what = match (by_log, booked.refunded) {
            (true, false) => "it was given back by the log, kept by the books".into(),
            (true, true) => {
                let (log, books) = (self.paid_back?, booked.refunded_cents);
                if log == books {
                    return None;
                }
                format!("{} was paid back by the log, {} by the books", dollars(log), dollars(books))
            }
            (false, _) if is_under_way => return None,
            (false, true) if self.returned => "it was paid back by the books, and the log does not know of it".into(),
            (false, true) => "it was given back by the books, and neither undone nor returned by the log".into(),
            // That an operator has declared the refund ended is an end.
            (false, false) if self.returned && matches!(self.refund, None | Some(Stand::Stuck)) => {
                "it was returned, and is not paid back".into()
            }
            (false, false) => return None,
        };
        Some(what)
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
        let mut text = format!("{table}\nthe log and the gateway's books {money}; the log and the stock {goods}");
        for difference in &self.differences {
            text.push_str("\n   ");
            text.push_str(difference);
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
