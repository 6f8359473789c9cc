//! Orders that keep coming, to see everything else happen beside them.

use std::{
    fmt::Display,
    pin::pin,
    time::{Duration, Instant},
};

use annals::{App, BoxError, Followers, Position, View, WaitError};
use chrono::Utc;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    operate::model,
    order::{CustomerId, Line, Order, OrderCommand, OrderId, Sku, StoreId},
    read_models::CustomerSpend,
    say::{note, say},
    shop::Shop,
};

/// How often it says how it goes.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How many orders may be under way.
const MOST_OPEN: usize = 1_000;
/// How long an order may take to show up in a read model before that is a failure.
const LIMIT: Duration = Duration::from_secs(60);
/// How often it looks whether the read model is held.
const LOOK: Duration = Duration::from_millis(500);
/// How long orders under way are waited for once a stop is asked for.
const ENDING: Duration = Duration::from_millis(500);

/// What was seen of the orders of a while.
#[derive(Debug, Default)]
struct Seen {
    /// Until each command was answered.
    answered: Vec<Duration>,
    /// From there until the customer's document showed it.
    visible: Vec<Duration>,
}

/// What came of the orders of a while. Where nothing was seen there is no figure.
#[derive(Debug, Serialize)]
struct Trade {
    /// Orders that were placed and acknowledged.
    placed: usize,
    /// A second.
    rate: f64,
    /// Until the command was answered, in milliseconds.
    answered_p50_ms: Option<f64>,
    answered_p99_ms: Option<f64>,
    /// Orders that the customer's document showed.
    visible: usize,
    /// From the answer until then.
    visible_p50_ms: Option<f64>,
    visible_p99_ms: Option<f64>,
}

/// Places `rate` orders a second for so many seconds, or until `stop`.
///
/// # Errors
/// An order is refused, or does not show up although its read model is not held.
pub(crate) async fn run(
    shop: &Shop,
    rate: f64,
    seconds: u64,
    json: bool,
    stop: &CancellationToken,
) -> Result<(), BoxError> {
    let (app, followers) = (&shop.app, &shop.app.store().followers());
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, first) = (Instant::now(), Utc::now().timestamp_micros());
    let (mut orders, mut shows, mut took) = (JoinSet::new(), JoinSet::new(), None);
    let (mut all, mut lately, mut told, mut nth) = (Seen::default(), Seen::default(), Instant::now(), 0);
    let mut held = None;
    let mut change = pin!(change(followers, None));
    let mut end = pin!(async {
        tokio::select! {
            () = sleep(Duration::from_secs(seconds)) => {}
            () = stop.cancelled() => {}
        }
    });
    let mut last = pin!(async {
        stop.cancelled().await;
        sleep(ENDING).await;
    });
    while took.is_none() || !orders.is_empty() || !shows.is_empty() {
        tokio::select! {
            () = &mut end, if took.is_none() => took = Some(begun.elapsed()),
            () = &mut last => break,
            now = &mut change => {
                match &now {
                    Some(why) => {
                        let name = CustomerSpend::NAME;
                        note(format_args!(
                            "{name} is {why}: orders are placed, and show up there after `projections resume {name}`"
                        ));
                        // What does not move is not waited for.
                        shows = JoinSet::new();
                    }
                    None => note(format_args!("{} goes on", CustomerSpend::NAME)),
                }
                held.clone_from(&now);
                change.set(self::change(followers, now));
            }
            Some(order) = orders.join_next() => {
                let (sent, answered, position): (Instant, Instant, Position) = order??;
                lately.answered.push(answered - sent);
                if held.is_none() {
                    shows.spawn(show(app.clone(), answered, position));
                }
            }
            Some(shown) = shows.join_next() => match shown? {
                Ok(visible) => lately.visible.push(visible),
                Err(error) => return Err(error.into()),
            },
            // A machine that cannot do so many does fewer.
            _ = ticks.tick(), if took.is_none() && orders.len() + shows.len() < MOST_OPEN => {
                orders.spawn(place(app.clone(), CustomerId(1 + nth % 1_000), OrderId(first + nth)));
                nth += 1;
            }
            () = sleep(TELL_EVERY.saturating_sub(told.elapsed())), if took.is_none() => {
                tell(&Trade::of(&mut lately, told.elapsed()), json)?;
                all.take(&mut lately);
                told = Instant::now();
            }
        }
    }
    all.take(&mut lately);
    if !json {
        say("In all:")?;
    }
    tell(&Trade::of(&mut all, took.unwrap_or_else(|| begun.elapsed())), json)
}

/// Places an order of one line. Returns when it was sent, when it was answered, and where it stands.
async fn place(app: App, customer: CustomerId, id: OrderId) -> Result<(Instant, Instant, Position), BoxError> {
    let bread = Line {
        sku: Sku(1),
        product: "RYE BREAD".into(),
        department: "BAKERY".into(),
        quantity: 1,
        amount_cents: 299,
        discount_cents: 0,
    };
    let sent = Instant::now();
    let place = OrderCommand::Place { customer, store: StoreId(1), lines: vec![bread] };
    let placed = app.execute::<Order>(id, place).await?;
    Ok((sent, Instant::now(), placed.position))
}

/// Waits until the customer's document shows `position`. Returns how long that took since it was `answered`.
async fn show(app: App, answered: Instant, position: Position) -> Result<Duration, WaitError> {
    app.wait_for(CustomerSpend::NAME, position, LIMIT).await?;
    Ok(answered.elapsed())
}

/// Waits until it is no longer so that the read model is held for the reason `before`, or is not. Returns what is so now.
async fn change(followers: &Followers, before: Option<String>) -> Option<String> {
    loop {
        // A server that is away is told elsewhere.
        if let Ok(live) = model(followers, CustomerSpend::NAME).await.map(|model| model.live) {
            let why = live.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let now = live.is_held().then(|| format!("{}{why}", live.state));
            if now != before {
                return now;
            }
        }
        sleep(LOOK).await;
    }
}

impl Seen {
    fn take(&mut self, other: &mut Self) {
        self.answered.append(&mut other.answered);
        self.visible.append(&mut other.visible);
    }
}

impl Trade {
    fn of(Seen { answered, visible }: &mut Seen, took: Duration) -> Self {
        answered.sort_unstable();
        visible.sort_unstable();
        let at = |percent: usize, of: &[Duration]| {
            let place = (of.len() * percent / 100).min(of.len().saturating_sub(1));
            of.get(place).map(|time| (time.as_secs_f64() * 100_000.0).round() / 100.0)
        };
        Self {
            placed: answered.len(),
            rate: (answered.len() as f64 / took.as_secs_f64().max(0.001)).round(),
            answered_p50_ms: at(50, answered),
            answered_p99_ms: at(99, answered),
            visible: visible.len(),
            visible_p50_ms: at(50, visible),
            visible_p99_ms: at(99, visible),
        }
    }

    fn text(&self) -> String {
        let ms = |figure: Option<f64>| figure.map_or_else(|| "–".into(), |figure| figure.to_string());
        format!(
            "{} orders, {} a second; answered within {} ms (99 %: {}), {} visible {} ms later (99 %: {})",
            self.placed,
            self.rate,
            ms(self.answered_p50_ms),
            ms(self.answered_p99_ms),
            self.visible,
            ms(self.visible_p50_ms),
            ms(self.visible_p99_ms)
        )
    }
}

fn tell(trade: &Trade, json: bool) -> Result<(), BoxError> {
    let text: &dyn Display = if json { &serde_json::to_string(trade)? } else { &trade.text() };
    Ok(say(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_was_seen_there_is_no_figure() {
        let mut seen = Seen { answered: vec![Duration::from_millis(4), Duration::from_millis(2)], visible: vec![] };

        let trade = Trade::of(&mut seen, Duration::from_secs(1));

        let text = "2 orders, 2 a second; answered within 4 ms (99 %: 4), 0 visible – ms later (99 %: –)";
        assert_eq!(trade.text(), text);
        let json = serde_json::to_value(trade).unwrap();
        assert_eq!((&json["placed"], &json["visible"]), (&2.into(), &0.into()));
        assert!(json["visible_p50_ms"].is_null() && json["answered_p50_ms"] == 4.0, "{json}");
    }
}
