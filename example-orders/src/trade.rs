//! Orders that keep coming, to see everything else happen beside them.

use std::time::{Duration, Instant};

use annals::{BoxError, View};
use chrono::Utc;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    order::{CustomerId, Line, Order, OrderCommand, OrderId, Sku, StoreId},
    read_models::CustomerSpend,
    say::say,
    shop::Shop,
};

/// How often it says how it goes.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How many orders may be under way.
const MOST_OPEN: usize = 1_000;
/// How long an order may take to show up in a read model before that is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// What came of the orders of a while.
#[derive(Debug, Serialize)]
struct Trade {
    /// Orders that were placed and acknowledged.
    placed: usize,
    /// A second.
    rate: f64,
    /// Until the command was answered, in milliseconds.
    answered_p50_ms: f64,
    answered_p99_ms: f64,
    /// From there until the customer's document showed it.
    visible_p50_ms: f64,
    visible_p99_ms: f64,
}

/// Places `rate` orders a second for so many seconds, or until `stop`.
///
/// # Errors
/// An order is refused, or does not show up.
pub(crate) async fn run(
    shop: &Shop,
    rate: f64,
    seconds: u64,
    json: bool,
    stop: &CancellationToken,
) -> Result<(), BoxError> {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate.clamp(0.1, 10_000.0)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, first) = (Instant::now(), Utc::now().timestamp_micros());
    let (mut orders, mut all, mut lately, mut told) = (JoinSet::new(), vec![], vec![], Instant::now());
    for nth in 0.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        if begun.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        // A machine that cannot do so many does fewer.
        while orders.len() >= MOST_OPEN
            && let Some(order) = orders.join_next().await
        {
            lately.push(order??);
        }
        let app = shop.app.clone();
        orders.spawn(async move {
            let bread = Line {
                sku: Sku(1),
                product: "RYE BREAD".into(),
                department: "BAKERY".into(),
                quantity: 1,
                amount_cents: 299,
                discount_cents: 0,
            };
            let (customer, store) = (CustomerId(1 + nth % 1_000), StoreId(1));
            let sent = Instant::now();
            let place = OrderCommand::Place { customer, store, lines: vec![bread] };
            let placed = app.execute::<Order>(OrderId(first + nth), place).await?;
            let answered = sent.elapsed();
            app.wait_for(CustomerSpend::NAME, placed.position, LIMIT).await?;
            Ok::<_, BoxError>((answered, sent.elapsed() - answered))
        });
        while let Some(order) = orders.try_join_next() {
            lately.push(order??);
        }
        if told.elapsed() >= TELL_EVERY {
            tell(&Trade::of(&mut lately, told.elapsed()), json)?;
            all.append(&mut lately);
            told = Instant::now();
        }
    }
    let took = begun.elapsed();
    while let Some(order) = orders.join_next().await {
        lately.push(order??);
    }
    all.append(&mut lately);
    if !json {
        say("In all:")?;
    }
    tell(&Trade::of(&mut all, took), json)
}

impl Trade {
    fn of(orders: &mut [(Duration, Duration)], took: Duration) -> Self {
        let mut at = |percent: usize, of: fn(&(Duration, Duration)) -> Duration| {
            orders.sort_unstable_by_key(of);
            let place = (orders.len() * percent / 100).min(orders.len().saturating_sub(1));
            orders.get(place).map_or(0.0, |order| (of(order).as_secs_f64() * 100_000.0).round() / 100.0)
        };
        Self {
            answered_p50_ms: at(50, |order| order.0),
            answered_p99_ms: at(99, |order| order.0),
            visible_p50_ms: at(50, |order| order.1),
            visible_p99_ms: at(99, |order| order.1),
            placed: orders.len(),
            rate: (orders.len() as f64 / took.as_secs_f64().max(0.001)).round(),
        }
    }
}

fn tell(trade: &Trade, json: bool) -> Result<(), BoxError> {
    if json {
        return Ok(say(serde_json::to_string(trade)?)?);
    }
    let Trade { placed, rate, answered_p50_ms, answered_p99_ms, visible_p50_ms, visible_p99_ms } = trade;
    Ok(say(format_args!(
        "{placed} orders, {rate} a second; answered within {answered_p50_ms} ms (99 %: {answered_p99_ms}), visible \
         {visible_p50_ms} ms later (99 %: {visible_p99_ms})"
    ))?)
}
