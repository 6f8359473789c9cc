//! P6: an event that this build cannot read is named exactly; older ones are led to the current version.

use annals::{
    Aggregate, Annals, App, Change, Context, Event, ExpectedVersion, FailurePolicy, Id, NewEvent, ReadStream, Recorded,
    StoreError, StreamId, Upcast, View, testing::database,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kit::{Account, AccountCommand, AccountEvent, HOLDS, LONG, chain, eventually, open, refusal},
    shop::{Order, OrderCommand, OrderEvent},
};

/// How many events there were, by category.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Seen {
    events: i64,
    cents: i64,
}

impl View for Seen {
    const NAME: &'static str = "seen";
    const FAILURES: FailurePolicy = HOLDS;
    type Event = AccountEvent;

    fn keys(_: &Recorded<AccountEvent>) -> Vec<Id> {
        vec!["all".into()]
    }

    fn apply(&mut self, _: &Id, _: &Recorded<AccountEvent>) -> Change {
        self.events += 1;
        Change::Keep
    }
}

async fn write(store: &Annals, stream: &str, event_type: &'static str, schema_version: u16, json: &str) {
    let event = NewEvent { schema_version, ..NewEvent::new(event_type, json) };
    store.append(&StreamId::new(stream).unwrap(), ExpectedVersion::Any, vec![event]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_is_named_by_commands_and_by_followers() {
    for (event_type, schema_version, json, words) in [
        ("Opened", 1, "{}", "the event type is not known; known are Deposited, Withdrawn, Rated"),
        ("Deposited", 1, r#"{"euros":1}"#, "missing field `cents`"),
        ("Deposited", 1, r#"{"cents":"1"}"#, "invalid type: string \"1\", expected i64"),
        ("Deposited", 7, r#"{"cents":1}"#, "a newer build wrote it; this one knows the versions up to 1"),
    ] {
        let database = database().await;
        let store = open(database.url()).await;
        let app = store.app().aggregate::<Account>().view::<Seen>().start().await.unwrap();
        app.execute::<Account>("ada", AccountCommand::Deposit(1)).await.unwrap();
        write(&store, "account-ada", event_type, schema_version, json).await;

        let error = refusal(app.execute::<Account>("ada", AccountCommand::Show).await);
        eventually("the follower shows it", || async { app.followers()[0].failed_position.is_some() }).await;

        let text = chain(&error);
        let StoreError::Undecodable(found) = &error else { panic!("{error:?}") };
        assert_eq!((found.stream.as_str(), found.version.get(), found.position.get()), ("account-ada", 2, 2));
        assert_eq!((found.event_type.as_str(), found.schema_version), (event_type, schema_version));
        assert!(text.contains(words), "{text}");
        let status = app.followers().remove(0);
        assert_eq!((status.position.get(), status.failed_position.unwrap().get()), (1, 2));
        let shown = status.last_error.unwrap();
        assert!(shown.contains(words) && shown.contains("account-ada, version 2, position 2"), "{shown}");
        assert_eq!(app.get::<Seen>("all").await.unwrap(), Some(Seen { events: 1, cents: 0 }));
        app.shutdown().await;
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
enum ParcelEvent {
    Packed,
    Cancelled { by: String },
}
impl Event for ParcelEvent {}

#[derive(Default, Serialize, Deserialize)]
struct Parcel;

#[derive(Serialize)]
enum ParcelCommand {
    Pack,
    Cancel(String),
}

impl Aggregate for Parcel {
    const TYPE: &'static str = "parcel";
    type Command = ParcelCommand;
    type Event = ParcelEvent;
    type Error = std::fmt::Error;

    fn handle(&self, command: &ParcelCommand, _: &Context) -> Result<Vec<ParcelEvent>, std::fmt::Error> {
        Ok(match command {
            ParcelCommand::Pack => vec![ParcelEvent::Packed],
            ParcelCommand::Cancel(by) => vec![ParcelEvent::Cancelled { by: by.clone() }],
        })
    }

    fn apply(&mut self, _: &ParcelEvent) {}
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ShopEvent {
    Order(OrderEvent),
    Parcel(ParcelEvent),
}
impl Event for ShopEvent {
    const UNION: bool = true;
}

/// Why orders and parcels were cancelled, in the order in which they were.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cancellations(Vec<String>);

impl View for Cancellations {
    const NAME: &'static str = "cancellations";
    type Event = ShopEvent;

    fn keys(recorded: &Recorded<ShopEvent>) -> Vec<Id> {
        vec![recorded.stream.id().into()]
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<ShopEvent>) -> Change {
        match &recorded.event {
            ShopEvent::Order(OrderEvent::Cancelled { reason, .. }) => self.0.push(format!("order: {reason}")),
            ShopEvent::Parcel(ParcelEvent::Cancelled { by }) => self.0.push(format!("parcel: {by}")),
            _ => {}
        }
        Change::Keep
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_reads_the_events_of_two_aggregates_with_variants_of_one_name() {
    let database = database().await;
    let builder = open(database.url()).await.app().aggregate::<Order>().aggregate::<Parcel>();
    let app = builder.view::<Cancellations>().start().await.unwrap();

    let place = OrderCommand::Place { customer: "ada".into(), cents: 5 };
    app.execute::<Order>(1, place).await.unwrap();
    app.execute::<Parcel>(1, ParcelCommand::Pack).await.unwrap();
    app.execute::<Parcel>(1, ParcelCommand::Cancel("the driver".into())).await.unwrap();
    let last = app.execute::<Order>(1, OrderCommand::Cancel { reason: "no parcel".into() }).await.unwrap();
    app.wait_for("cancellations", last.position, LONG).await.unwrap();

    let seen = app.get::<Cancellations>(1).await.unwrap().unwrap();
    assert_eq!(seen.0, ["parcel: the driver", "order: no parcel"]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum MeterEvent {
    Read { watts: i64, at: String },
}
impl Event for MeterEvent {
    fn schema_version(_: &str) -> u16 {
        3
    }

    fn upcasts() -> Vec<Upcast> {
        let upcast = |from, upcast| Upcast { event_type: "Read", from, upcast };
        vec![
            upcast(1, |mut json, _| {
                let kilowatts = json["kilowatts"].as_i64().ok_or("`kilowatts` is no whole number")?;
                json["watts"] = (kilowatts * 1_000).into();
                Ok(json)
            }),
            upcast(2, |mut json, recorded| {
                json["at"] = recorded.stream.id().into();
                Ok(json)
            }),
        ]
    }
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Meter {
    watts: i64,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} W")]
struct Watts(i64);

impl Aggregate for Meter {
    const TYPE: &'static str = "meter";
    type Command = Option<i64>;
    type Event = MeterEvent;
    type Error = Watts;

    fn handle(&self, command: &Option<i64>, _: &Context) -> Result<Vec<MeterEvent>, Watts> {
        command.map(|watts| vec![MeterEvent::Read { watts, at: "here".into() }]).ok_or(Watts(self.watts))
    }

    fn apply(&mut self, MeterEvent::Read { watts, .. }: &MeterEvent) {
        self.watts += watts;
    }
}

impl View for Meter {
    const NAME: &'static str = "meters";
    const FAILURES: FailurePolicy = HOLDS;
    type Event = MeterEvent;

    fn keys(recorded: &Recorded<MeterEvent>) -> Vec<Id> {
        let MeterEvent::Read { at, .. } = &recorded.event;
        vec![at.into()]
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<MeterEvent>) -> Change {
        Aggregate::apply(self, &recorded.event);
        Change::Keep
    }
}

async fn meters(store: &Annals) -> App {
    store.app().aggregate::<Meter>().view::<Meter>().start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_older_versions_are_led_to_the_current_one_for_commands_and_views() {
    let database = database().await;
    let store = open(database.url()).await;
    write(&store, "meter-cellar", "Read", 1, r#"{"kilowatts":2}"#).await;
    write(&store, "meter-cellar", "Read", 2, r#"{"watts":30}"#).await;

    let app = meters(&store).await;
    let last = app.execute::<Meter>("cellar", Some(4)).await.unwrap();
    let shown = app.execute::<Meter>("cellar", None).await.unwrap_err().to_string();
    app.wait_for_all(last.position, LONG).await.unwrap();

    assert_eq!(shown, "2034 W");
    assert_eq!(app.get::<Meter>("cellar").await.unwrap(), Some(Meter { watts: 2_030 }));
    assert_eq!(app.get::<Meter>("here").await.unwrap(), Some(Meter { watts: 4 }));
    let written: i16 = sqlx::query_scalar("select schema_version from annals.events where version = 3")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(written, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upcast_that_fails_names_the_event_and_the_step() {
    let database = database().await;
    let store = open(database.url()).await;
    write(&store, "meter-cellar", "Read", 1, r#"{"kilowatts":"two"}"#).await;
    let app = meters(&store).await;

    let error = chain(&refusal(app.execute::<Meter>("cellar", None).await));
    eventually("the view shows it", || async { app.followers()[0].last_error.is_some() }).await;

    let words = "the upcast from version 1 failed: `kilowatts` is no whole number";
    assert!(error.contains(words), "{error}");
    assert!(app.followers()[0].last_error.as_ref().unwrap().contains(words));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_into_the_log_and_out_of_it_as_the_aggregates_own_type() {
    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().start().await.unwrap();
    let stream = StreamId::of("order", 1).unwrap();
    let placed = OrderEvent::Placed { customer: "ada".into(), cents: 5 };

    let new = NewEvent::of(&placed).unwrap();
    app.store().append(&stream, ExpectedVersion::NoStream, vec![new]).await.unwrap();
    write(app.store(), "order-1", "Teleported", 1, "null").await;

    let page = app.store().read_stream_page(&stream, ReadStream::default(), 10).await.unwrap();
    let read = app.decode::<OrderEvent>(&page.events[0]).unwrap();
    assert_eq!((read.stream.id(), read.event), ("1", placed));
    let unknown = app.decode::<OrderEvent>(&page.events[1]).unwrap_err();
    assert_eq!((unknown.version.get(), &*unknown.event_type), (2, "Teleported"));
}
