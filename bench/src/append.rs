//! Appends and commands of one event, by many callers at once; each stream takes ten.

use std::time::{Duration, Instant};

use annals::{Aggregate, Annals, App, BoxError, Config, Context, Event, NewEvent, StreamId, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::measure::Figures;

/// Events to a stream.
const PER_STREAM: i64 = 10;

#[derive(Serialize, Deserialize, JsonSchema)]
enum CounterEvent {
    Counted { note: String },
}
impl Event for CounterEvent {}

#[derive(Serialize)]
struct Count {
    note: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    counted: u64,
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = Count;
    type Event = CounterEvent;
    type Error = std::fmt::Error;

    fn handle(&self, command: &Count, _: &Context) -> Result<Vec<CounterEvent>, std::fmt::Error> {
        Ok(vec![CounterEvent::Counted { note: command.note.clone() }])
    }

    fn apply(&mut self, _: &CounterEvent) {
        self.counted += 1;
    }
}

/// 250 bytes of JSON.
fn note() -> String {
    "x".repeat(239)
}

pub(crate) async fn append(url: &str, callers: usize, seconds: u64) -> Result<Figures, BoxError> {
    let annals = Annals::connect(Config::new(url)).await?;
    let payload = format!("{{\"note\":\"{}\"}}", note());
    let call = async |until: Instant| -> Result<Vec<u64>, BoxError> {
        let mut latencies = vec![];
        while Instant::now() < until {
            let stream = StreamId::of("bench", Uuid::now_v7())?;
            for version in 0..PER_STREAM {
                let event = NewEvent::new("Counted", payload.clone());
                let start = Instant::now();
                annals.append(&stream, Version::new(version), vec![event]).await?;
                latencies.push(start.elapsed().as_micros() as u64);
            }
        }
        Ok(latencies)
    };
    let figures = run(callers, seconds, call).await;
    annals.close().await;
    figures
}

pub(crate) async fn command(url: &str, callers: usize, seconds: u64) -> Result<Figures, BoxError> {
    let annals = Annals::connect(Config::new(url)).await?;
    let app: App = annals.app().aggregate::<Counter>().start().await?;
    let note = note();
    let call = async |until: Instant| -> Result<Vec<u64>, BoxError> {
        let mut latencies = vec![];
        while Instant::now() < until {
            let id = Uuid::now_v7();
            for _ in 0..PER_STREAM {
                let start = Instant::now();
                app.execute::<Counter>(id, Count { note: note.clone() }).await?;
                latencies.push(start.elapsed().as_micros() as u64);
            }
        }
        Ok(latencies)
    };
    let figures = run(callers, seconds, call).await;
    app.shutdown().await;
    figures
}

async fn run<F>(callers: usize, seconds: u64, call: F) -> Result<Figures, BoxError>
where
    F: AsyncFn(Instant) -> Result<Vec<u64>, BoxError>,
{
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let all = futures::future::try_join_all((0..callers).map(|_| call(until))).await?;
    Ok(Figures::of(all.concat(), start.elapsed()))
}
