//! Appends and commands by many callers at once; each stream takes ten of them.

use std::time::{Duration, Instant};

use annals::{Aggregate, Annals, App, BoxError, Config, Context, Event, NewEvent, Options, StreamId, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    measure::Figures,
    server::{self, Server},
};

/// Appends or commands to a stream.
const PER_STREAM: usize = 10;
const STORE: &str = "bench_append";

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) enum CounterEvent {
    Counted { note: String },
}
impl Event for CounterEvent {}

#[derive(Serialize)]
pub(crate) struct Count {
    events: usize,
    note: String,
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Counter {
    counted: u64,
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = Count;
    type Event = CounterEvent;
    type Error = std::fmt::Error;

    fn handle(&self, command: &Count, _: &Context) -> Result<Vec<CounterEvent>, std::fmt::Error> {
        Ok(vec![CounterEvent::Counted { note: command.note.clone() }; command.events])
    }

    fn apply(&mut self, _: &CounterEvent) {
        self.counted += 1;
    }
}

/// The text that makes a payload of 250 bytes.
pub(crate) fn note() -> String {
    "x".repeat(239)
}

/// As many appends as `callers` get through in `seconds`, in a new store.
pub(crate) async fn append(server: &Server, events: usize, callers: usize, seconds: u64) -> Result<Figures, BoxError> {
    server.drop_store(STORE).await?;
    let annals = Annals::connect(config(server)).await?;
    server.settle().await?;
    let figures = append_to(&annals, &note(), events, callers, seconds).await;
    annals.close().await;
    figures
}

/// The same with a payload that holds `note`, in a store that is there.
pub(crate) async fn append_to(
    annals: &Annals,
    note: &str,
    events: usize,
    callers: usize,
    seconds: u64,
) -> Result<Figures, BoxError> {
    let until = after(seconds);
    append_while(annals, note, events, callers, || Instant::now() < until).await
}

/// The same for as long as `go_on` says so.
pub(crate) async fn append_while(
    annals: &Annals,
    note: &str,
    events: usize,
    callers: usize,
    go_on: impl Fn() -> bool,
) -> Result<Figures, BoxError> {
    let payload = format!("{{\"note\":\"{note}\"}}");
    let call = async || -> Result<Vec<u64>, BoxError> {
        let mut latencies = vec![];
        while go_on() {
            let stream = StreamId::of(Counter::TYPE, Uuid::now_v7())?;
            for nth in 0..PER_STREAM {
                let new = (0..events).map(|_| NewEvent::new("Counted", payload.clone())).collect();
                let expected = Version::new((nth * events) as i64);
                let start = Instant::now();
                annals.append(&stream, expected, new).await?;
                latencies.push(start.elapsed().as_micros() as u64);
            }
        }
        Ok(latencies)
    };
    run(events, callers, call).await
}

/// The same as full commands: load, decide, append. With `ids`, each has a command id from outside.
pub(crate) async fn command(
    server: &Server,
    events: usize,
    callers: usize,
    ids: bool,
    seconds: u64,
) -> Result<Figures, BoxError> {
    server.drop_store(STORE).await?;
    let annals = Annals::connect(config(server)).await?;
    let app: App = annals.app().aggregate::<Counter>().start().await?;
    server.settle().await?;
    let (note, until) = (note(), after(seconds));
    let call = async || -> Result<Vec<u64>, BoxError> {
        let mut latencies = vec![];
        while Instant::now() < until {
            let id = Uuid::now_v7();
            for _ in 0..PER_STREAM {
                let start = Instant::now();
                let options = if ids { Options::default().command_id(Uuid::now_v7()) } else { Options::default() };
                app.execute_with::<Counter>(id, Count { events, note: note.clone() }, options).await?;
                latencies.push(start.elapsed().as_micros() as u64);
            }
        }
        Ok(latencies)
    };
    let figures = run(events, callers, call).await;
    app.shutdown().await;
    figures
}

fn config(server: &Server) -> Config {
    Config { store: STORE.into(), ..server::config(server.url()) }
}

fn after(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

async fn run<F>(events: usize, callers: usize, call: F) -> Result<Figures, BoxError>
where
    F: AsyncFn() -> Result<Vec<u64>, BoxError>,
{
    let start = Instant::now();
    let all = futures::future::try_join_all((0..callers).map(|_| call())).await?;
    Ok(Figures::of(all.concat(), events, start.elapsed()))
}
