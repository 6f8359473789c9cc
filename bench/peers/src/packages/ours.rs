//! Annals, as everybody else is set up: by its own documentation.

use annals::{
    Aggregate, Annals, App, BoxError, Change, Config, Context, Event, Id, NewEvent, Recorded, StreamId, Version, View,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::work::{Model, Store, note};

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
enum CounterEvent {
    Counted { note: String },
}
impl Event for CounterEvent {}

#[derive(Serialize)]
enum Command {
    Count {
        note: String,
    },
    /// Decides nothing: what it costs is the load that proves it.
    Look,
}

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    counted: u64,
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = Command;
    type Event = CounterEvent;
    type Error = std::fmt::Error;

    fn handle(&self, command: &Command, _: &Context) -> Result<Vec<CounterEvent>, std::fmt::Error> {
        Ok(match command {
            Command::Count { note } => vec![CounterEvent::Counted { note: note.clone() }],
            Command::Look => vec![],
        })
    }

    fn apply(&mut self, _: &CounterEvent) {
        self.counted += 1;
    }
}

/// How many events each stream has.
#[derive(Default, Serialize, Deserialize)]
struct Counted {
    counted: i64,
}

impl View for Counted {
    const NAME: &'static str = "counted";
    type Event = CounterEvent;

    fn keys(recorded: &Recorded<CounterEvent>) -> Vec<Id> {
        vec![recorded.stream.id().into()]
    }

    fn apply(&mut self, _: &Id, _: &Recorded<CounterEvent>) -> Change {
        self.counted += 1;
        Change::Keep
    }
}

pub(super) struct Ours {
    annals: Annals,
    app: App,
    payload: String,
    note: String,
}

impl Store for Ours {
    type Stream = (StreamId, Version);

    const MODEL: Model =
        Model { table: "annals_counted.documents", stream: "key", counted: "(document->>'counted')::bigint" };

    async fn open(url: &str) -> Result<Self, BoxError> {
        let annals = Annals::connect(Config::new(url)).await?;
        let app = annals.app().aggregate::<Counter>().start().await?;
        let note = note();
        Ok(Self { annals, app, payload: format!("{{\"note\":\"{note}\"}}"), note })
    }

    fn fill() -> String {
        "insert into annals.events (version, event_id, correlation_id, stream, event_type, payload)
         select version, gen_random_uuid(), gen_random_uuid(), 'counter-' || stream, 'Counted',
           ('{\"note\":\"' || repeat('x', 239) || '\"}')::json
         from seed order by n"
            .into()
    }

    fn stream(&self) -> Result<(String, Self::Stream), BoxError> {
        let id = Uuid::now_v7();
        Ok((id.to_string(), (StreamId::of(Counter::TYPE, id)?, Version::NONE)))
    }

    async fn append(&self, (stream, version): &mut Self::Stream, events: usize) -> Result<(), BoxError> {
        let new = (0..events).map(|_| NewEvent::new("Counted", self.payload.clone())).collect();
        *version = self.annals.append(stream, *version, new).await?.version;
        Ok(())
    }

    async fn command(&self, id: Uuid) -> Result<(), BoxError> {
        self.app.execute::<Counter>(id, Command::Count { note: self.note.clone() }).await?;
        Ok(())
    }

    async fn load(&self, id: Uuid) -> Result<usize, BoxError> {
        Ok(self.app.execute::<Counter>(id, Command::Look).await?.version.get() as usize)
    }

    async fn follow(&self) -> Result<JoinHandle<Result<(), BoxError>>, BoxError> {
        let app = self.annals.app().aggregate::<Counter>().view::<Counted>().start().await?;
        Ok(tokio::spawn(async move {
            // The app follows for as long as it is kept.
            let _app = app;
            std::future::pending().await
        }))
    }

    async fn close(&self) {
        self.app.shutdown().await;
        self.annals.close().await;
    }
}
