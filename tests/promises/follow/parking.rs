//! P8: an event that fails is parked with the later ones of its key, in order; all other keys go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{LazyLock, Mutex, MutexGuard},
    time::Duration,
};

use annals::{
    App, BoxError, Change, DeadLetters, ExpectedVersion, FailurePolicy, Fate, FollowerState, Id, NewEvent, Position,
    Projector, Recorded, StoreError, StreamId, View, testing::database,
};
use futures::future::join_all;
use serde::{Deserialize, Serialize};

use super::{assert_accounted, by, parked, status};
use crate::{
    app::place,
    kit::{LONG, eventually, open},
    shop::{Order, OrderEvent},
};

/// Only an operator tries again.
const ONCE: FailurePolicy = FailurePolicy { attempts: 1, ..FailurePolicy::PARK };

/// The customers whose events fail, by test: each test has its own names.
static POISON: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);

fn poison() -> MutexGuard<'static, BTreeSet<String>> {
    POISON.lock().unwrap_or_else(|error| error.into_inner())
}

/// What each customer did, in order.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct History(Vec<i64>);

impl View for History {
    const NAME: &'static str = "history";
    const FAILURES: FailurePolicy = ONCE;
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        match &recorded.event {
            OrderEvent::Placed { customer, .. } => vec![customer.into()],
            OrderEvent::Cancelled { customer, reason, .. } => vec![customer.into(), reason.into()],
            OrderEvent::Confirmed => panic!("who confirmed?"),
        }
    }

    fn apply(&mut self, key: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        self.0.push(recorded.position.get());
        assert!(!poison().contains(&**key), "poison for {:?} at {}", &**key, recorded.position);
        Change::Keep
    }
}

async fn app(url: &str) -> App {
    open(url).await.app().aggregate::<Order>().view::<History>().projector(Picky).start().await.unwrap()
}

/// Refuses amounts that are poison, by a rule of its table.
struct Picky;

impl Projector for Picky {
    const NAME: &'static str = "picky";
    const FAILURES: FailurePolicy = ONCE;
    const TABLES: &'static str = "create table lines (position bigint primary key, stream text not null, \
                                  cents bigint constraint not_thirteen check (cents <> 13))";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        for recorded in events {
            let cents = if let OrderEvent::Placed { cents, .. } = recorded.event { cents } else { 0 };
            sqlx::query("insert into lines values ($1, $2, $3)")
                .bind(recorded.position.get())
                .bind(recorded.stream.as_str())
                .bind(cents)
                .execute(&mut *conn)
                .await?;
        }
        Ok(())
    }
}

async fn append(app: &App, stream: &str, events: &[(&str, i64)]) -> Position {
    let event = |(customer, cents): &(&str, i64)| match *customer {
        "" => NewEvent::new("Confirmed", "null"),
        "?" => NewEvent::new("Placed", "{}"),
        customer => NewEvent::new("Placed", serde_json::json!({"customer": customer, "cents": cents}).to_string()),
    };
    let events = events.iter().map(event).collect();
    app.store().append(&StreamId::new(stream).unwrap(), ExpectedVersion::Any, events).await.unwrap().position
}

async fn letters(app: &App, name: &str) -> Vec<(i64, String, bool, String)> {
    let letters = app.store().followers().dead_letters(Some(name), &DeadLetters::All, 100_000).await.unwrap();
    letters.into_iter().map(|letter| (letter.position.get(), letter.key, letter.by_stream, letter.state)).collect()
}

async fn history(app: &App, key: &str) -> Option<Vec<i64>> {
    app.get::<History>(key).await.unwrap().map(|history| history.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_is_parked_in_order_and_takes_effect_in_order_once_it_is_tried_again() {
    let database = database().await;
    let app = app(database.url()).await;
    poison().insert("ann".into());

    append(&app, "order-1", &[("ann", 1), ("ben", 1), ("ann", 2)]).await;
    let last = append(&app, "order-2", &[("ben", 2), ("ann", 3), ("ben", 3)]).await;
    app.wait_for("history", last, LONG).await.unwrap();

    assert_eq!((history(&app, "ben").await, history(&app, "ann").await), (Some(vec![2, 4, 6]), None));
    let ann = |position, state: &str| (position, "ann".to_owned(), false, state.to_owned());
    assert_eq!(letters(&app, "history").await, [ann(1, "failed"), ann(3, "queued"), ann(5, "queued")]);
    assert_eq!(assert_accounted(&app, "history").await, (6, 3, 3, 0));
    let groups = app.store().followers().dead_letter_groups(Some("history")).await.unwrap();
    assert_eq!((groups.len(), groups[0].failed, groups[0].waiting), (1, 1, 2));
    assert!(groups[0].error.contains("poison for \"ann\" at 1"), "{groups:?}");

    // Tried again without a mend, it fails again and stays in order.
    assert_eq!(
        app.store().followers().retry("history", &DeadLetters::Key("ann".into()), &by("hope")).await.unwrap(),
        1
    );
    let tried = || async {
        let letters = app.store().followers().dead_letters(Some("history"), &DeadLetters::All, 10).await.unwrap();
        letters[0].attempts == 1 && letters[0].next_attempt_at.is_none()
    };
    eventually("it was tried again", tried).await;
    assert_eq!(parked(&app, "history").await, 3);

    poison().remove("ann");
    let fingerprint = DeadLetters::Fingerprint(groups[0].fingerprint.clone());
    assert_eq!(app.store().followers().retry("history", &fingerprint, &by("mended")).await.unwrap(), 1);
    eventually("nothing is parked", || async { parked(&app, "history").await == 0 }).await;
    let last = append(&app, "order-3", &[("ann", 4)]).await;
    app.wait_for("history", last, LONG).await.unwrap();

    assert_eq!(history(&app, "ann").await, Some(vec![1, 3, 5, 7]));
    assert_eq!(assert_accounted(&app, "history").await, (7, 7, 0, 0));
    let actions = app.store().followers().actions(Some("history"), 10).await.unwrap();
    let actions: Vec<_> =
        actions.iter().map(|did| (&*did.action, &*did.actor, did.reason.as_deref().unwrap())).collect();
    assert_eq!(actions, [("retry", "tests", "mended"), ("retry", "tests", "hope")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_known_keys_parks_its_stream() {
    let database = database().await;
    let app = app(database.url()).await;

    // The second does not decode; at the third of another stream `keys` panics.
    append(&app, "order-1", &[("cid", 1), ("?", 0), ("cid", 2)]).await;
    append(&app, "order-2", &[("dan", 1), ("", 0), ("dan", 2)]).await;
    let last = append(&app, "order-3", &[("cid", 3), ("dan", 3)]).await;
    app.wait_for_all(last, LONG).await.unwrap();

    let row = |position, stream: &str, state: &str| (position, stream.to_owned(), true, state.to_owned());
    let expected = [
        row(2, "order-1", "failed"),
        row(3, "order-1", "queued"),
        row(5, "order-2", "failed"),
        row(6, "order-2", "queued"),
    ];
    assert_eq!(letters(&app, "history").await, expected);
    assert_eq!((history(&app, "cid").await, history(&app, "dan").await), (Some(vec![1, 7]), Some(vec![4, 8])));
    let undecodable =
        app.store().followers().dead_letters(None, &DeadLetters::Event(Position::new(2)), 10).await.unwrap();
    assert_eq!((undecodable.len(), &*undecodable[0].payload, &*undecodable[0].event_type), (2, "{}", "Placed"));
    assert!(undecodable[0].error.as_ref().unwrap().contains("order-1, version 2, position 2"), "{undecodable:?}");

    // Discarded, for a reason: what waits behind it takes effect by itself.
    let refused = app.store().followers().discard("history", &DeadLetters::All, &by(" ")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unfit(_)));
    for position in [2, 5] {
        let event = DeadLetters::Event(Position::new(position));
        assert_eq!(app.store().followers().discard("history", &event, &by("no such order")).await.unwrap(), 1);
    }
    eventually("nothing is parked", || async { parked(&app, "history").await == 0 }).await;

    assert_eq!((history(&app, "cid").await, history(&app, "dan").await), (Some(vec![1, 7, 3]), Some(vec![4, 8, 6])));
    assert_eq!(assert_accounted(&app, "history").await, (8, 6, 0, 2));
    let discarded = app.store().followers().discarded(Some("history"), &DeadLetters::All, 10).await.unwrap();
    let (who, _, why) = discarded[0].discarded.clone().unwrap();
    assert_eq!((discarded.len(), &*who, &*why), (2, "tests", "no such order"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_discarded_of_a_stream_stays_out_whatever_the_number_of_partitions() {
    let database = database().await;
    let app = app(database.url()).await;
    let control = app.store().followers();
    let many = async |partitions: usize| {
        control.set_partitions("history", partitions as u32, &by("more room")).await.unwrap();
        let is_so = || async {
            let lag = control.lag().await.unwrap();
            lag.iter().filter(|lag| lag.follower == "history" && lag.partitions == partitions as i32).count()
                == partitions
        };
        eventually("there are so many", is_so).await;
    };
    many(2).await;
    let broken = NewEvent::new("Placed", r#"{"customer":7}"#);
    let stream = StreamId::new("order-7").unwrap();
    app.store().append(&stream, ExpectedVersion::NoStream, vec![broken]).await.unwrap();
    let last = append(&app, "order-8", &[("ada", 1), ("bob", 2), ("cyn", 3)]).await;
    app.wait_for("history", last, LONG).await.unwrap();
    control.discard("history", &DeadLetters::All, &by("not an order")).await.unwrap();

    for partitions in [4, 3, 1] {
        many(partitions).await;
        let verified = app.verify("history").await.unwrap();
        assert!(verified.equal, "{partitions}: {verified:?}");
        for key in ["ada", "bob", "cyn"] {
            assert!(!app.rebuild_key::<History>(key, &by("to see")).await.unwrap().changed, "{partitions}: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_tried_again_though_a_stream_of_its_events_is_parked_too() {
    let database = database().await;
    let app = app(database.url()).await;
    poison().insert("kay".into());
    append(&app, "order-0", &[("kay", 1)]).await;
    append(&app, "order-1", &[("kay", 2), ("?", 0), ("kay", 3)]).await;
    let last = append(&app, "order-2", &[("kay", 4)]).await;
    app.wait_for("history", last, LONG).await.unwrap();
    let key = |position, state: &str| (position, "kay".to_owned(), false, state.to_owned());
    let stream = |position, state: &str| (position, "order-1".to_owned(), true, state.to_owned());
    let parked_at_first =
        [key(1, "failed"), key(2, "queued"), key(5, "queued"), stream(3, "failed"), stream(4, "queued")];
    assert_eq!(letters(&app, "history").await, parked_at_first);

    poison().remove("kay");
    app.store().followers().retry("history", &DeadLetters::All, &by("mended")).await.unwrap();
    eventually("the key is through", || async { parked(&app, "history").await == 2 }).await;
    // The undecodable one was tried again, too, and the partition goes on.
    let last = append(&app, "order-3", &[("kay", 5)]).await;
    app.wait_for("history", last, LONG).await.unwrap();
    assert_eq!(history(&app, "kay").await, Some(vec![1, 2, 5, 6]));
    assert_eq!(letters(&app, "history").await, [stream(3, "failed"), stream(4, "queued")]);
    assert_eq!(assert_accounted(&app, "history").await, (6, 4, 2, 0));

    app.store().followers().discard("history", &DeadLetters::Event(Position::new(3)), &by("garbage")).await.unwrap();
    eventually("nothing is parked", || async { parked(&app, "history").await == 0 }).await;
    assert_eq!(history(&app, "kay").await, Some(vec![1, 2, 5, 6, 4]));
    assert_eq!(assert_accounted(&app, "history").await, (6, 5, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_parks_the_stream_of_an_event_that_its_sql_refuses() {
    let database = database().await;
    let app = app(database.url()).await;

    let many: Vec<(&str, i64)> = (0..500).map(|cents| ("eve", cents + 100)).collect();
    append(&app, "order-1", &many).await;
    append(&app, "order-2", &[("eve", 1), ("eve", 13), ("eve", 2)]).await;
    let last = append(&app, "order-1", &many).await;
    app.wait_for("picky", last, LONG).await.unwrap();

    let row = |position, state: &str| (position, "order-2".to_owned(), false, state.to_owned());
    assert_eq!(letters(&app, "picky").await, [row(502, "failed"), row(503, "queued")]);
    assert_eq!(assert_accounted(&app, "picky").await, (1_003, 1_001, 2, 0));
    sqlx::query("alter table annals_picky.lines drop constraint not_thirteen")
        .execute(app.store().pool())
        .await
        .unwrap();
    app.store().followers().retry("picky", &DeadLetters::All, &by("rule dropped")).await.unwrap();
    eventually("nothing is parked", || async { parked(&app, "picky").await == 0 }).await;

    let rows: i64 =
        sqlx::query_scalar("select count(*) from annals_picky.lines").fetch_one(app.store().pool()).await.unwrap();
    assert_eq!((rows, assert_accounted(&app, "picky").await), (1_003, (1_003, 1_003, 0, 0)));
}

/// Fails the first two times for each customer.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Flaky(Vec<i64>);

static TRIED: LazyLock<Mutex<BTreeMap<i64, u32>>> = LazyLock::new(Mutex::default);

impl View for Flaky {
    const NAME: &'static str = "flaky";
    const FAILURES: FailurePolicy =
        FailurePolicy { attempts: 4, first_delay: Duration::from_millis(20), ..FailurePolicy::PARK };
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        vec![recorded.stream.id().into()]
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        let tries = {
            let mut tried = TRIED.lock().unwrap();
            let tries = tried.entry(recorded.position.get()).or_default();
            *tries += 1;
            *tries
        };
        assert!(recorded.version.get() != 2 || tries > 2, "not yet");
        self.0.push(recorded.version.get());
        Change::Keep
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_a_while_is_tried_again_by_itself() {
    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().view::<Flaky>().start().await.unwrap();

    append(&app, "order-1", &[("x", 1), ("x", 2), ("x", 3)]).await;
    let last = append(&app, "order-2", &[("x", 1)]).await;
    app.wait_for("flaky", last, LONG).await.unwrap();
    eventually("nothing is parked", || async { parked(&app, "flaky").await == 0 }).await;

    assert_eq!(app.get::<Flaky>("1").await.unwrap(), Some(Flaky(vec![1, 2, 3])));
    assert_eq!(assert_accounted(&app, "flaky").await, (4, 4, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_failures_that_look_alike_halts_the_follower_instead_of_parking_everything() {
    let database = database().await;
    let app = app(database.url()).await;
    let names: Vec<String> = (0..3_000).map(|nth| format!("storm-{nth}")).collect();
    poison().extend(names.iter().cloned());
    let events: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();

    let last = append(&app, "order-1", &events).await;
    eventually("it halts", || async { status(&app, "history").state == FollowerState::Halted }).await;
    app.wait_for("picky", last, LONG).await.unwrap();

    let halted = status(&app, "history").last_error.unwrap();
    assert!(halted.contains("too many events fail alike") && halted.contains("poison for"), "{halted}");
    assert!(parked(&app, "history").await < 200, "{}", parked(&app, "history").await);
    let action = app.store().followers().actions(Some("history"), 1).await.unwrap().remove(0);
    assert_eq!((&*action.action, &*action.actor), ("halt", "annals"));
    app.store().followers().pause("history", &by("to look at it")).await.unwrap();
    let lag = app.store().followers().lag().await.unwrap();
    let reason = lag.into_iter().find(|lag| lag.follower == "history").unwrap().reason.unwrap();
    assert!(reason.starts_with("to look at it, by tests; it had halted: too many events fail alike"), "{reason}");

    poison().retain(|name| !name.starts_with("storm-"));
    app.store().followers().resume("history", &by("mended")).await.unwrap();
    app.wait_for("history", last, LONG).await.unwrap();
    assert_accounted(&app, "history").await;
    assert_eq!(history(&app, "storm-2999").await, Some(vec![3_000]));
}

/// Can apply nothing.
struct Broken;

impl Projector for Broken {
    const NAME: &'static str = "broken";
    const FAILURES: FailurePolicy = ONCE;
    const TABLES: &'static str = "create table lines (position bigint check (position < 0))";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        let positions: Vec<i64> = events.iter().map(|event| event.position.get()).collect();
        sqlx::query("insert into lines select * from unnest($1::bigint[])").bind(positions).execute(conn).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_whose_sql_refuses_everything_halts_and_one_whose_table_is_missing_parks_nothing() {
    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().projector(Broken).start().await.unwrap();
    for nth in 0..250 {
        app.execute::<Order>(nth, place("ada", 1)).await.unwrap();
    }
    eventually("it halts", || async { status(&app, "broken").state == FollowerState::Halted }).await;
    let count = parked(&app, "broken").await;
    assert!((90..150).contains(&count), "{count}");
    let groups = app.store().followers().dead_letter_groups(Some("broken")).await.unwrap();
    assert_eq!((groups.len(), groups[0].failed), (1, count as i64), "they look alike: {groups:?}");

    sqlx::raw_sql("drop table annals_broken.lines").execute(app.store().pool()).await.unwrap();
    app.store().followers().resume("broken", &by("look again")).await.unwrap();
    eventually("it halts again", || async {
        let status = status(&app, "broken");
        status.state == FollowerState::Halted && status.last_error.is_some_and(|error| error.contains("does not exist"))
    })
    .await;
    assert_eq!(parked(&app, "broken").await, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_of_a_thousand_that_breaks_a_rule_is_parked_and_the_others_are_applied() {
    let database = database().await;
    let app = app(database.url()).await;

    let streams: Vec<String> = (1..=1_000).map(|nth| format!("order-{nth}")).collect();
    let place = |nth: usize| {
        let (app, stream) = (&app, &streams[nth]);
        async move { append(app, stream, &[("abe", if nth == 499 { 13 } else { 1 })]).await }
    };
    join_all((0..499).map(place)).await;
    let poisoned = place(499).await;
    let last = join_all((500..1_000).map(place)).await.into_iter().max().unwrap();
    app.wait_for("picky", last, LONG).await.unwrap();

    assert_eq!(letters(&app, "picky").await, [(poisoned.get(), "order-500".into(), false, "failed".into())]);
    assert_eq!(assert_accounted(&app, "picky").await, (1_000, 999, 1, 0));
    let count = "select count(*), count(*) filter (where stream = 'order-500') from annals_picky.lines";
    let rows: (i64, i64) = sqlx::query_as(count).fetch_one(app.store().pool()).await.unwrap();
    assert_eq!(rows, (999, 0));
}

/// Can do its work as long as its table is as it made it.
struct Plain;

impl Projector for Plain {
    const NAME: &'static str = "plain";
    const FAILURES: FailurePolicy = ONCE;
    const TABLES: &'static str = "create table lines (position bigint primary key, cents bigint not null)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        for recorded in events {
            let cents = if let OrderEvent::Placed { cents, .. } = recorded.event { cents } else { 0 };
            let insert = sqlx::query("insert into lines (position, cents) values ($1, $2)");
            insert.bind(recorded.position.get()).bind(cents).execute(&mut *conn).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_whose_sql_is_wrong_or_whose_table_is_gone_says_so_and_goes_on_once_that_is_mended() {
    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().projector(Plain).start().await.unwrap();
    let (pool, control) = (app.store().pool(), app.store().followers());
    let trade = async |from: i64, to: i64| {
        let placed = join_all((from..to).map(|nth| app.execute::<Order>(nth, place("ada", nth)))).await;
        placed.into_iter().map(|receipt| receipt.unwrap().position).max().unwrap()
    };
    let halts = async |words: &str| {
        eventually("it halts", || async { status(&app, "plain").state == FollowerState::Halted }).await;
        let shown = status(&app, "plain").last_error.unwrap();
        assert!(shown.contains(words), "{shown}");
    };
    let last = trade(0, 3).await;
    app.wait_for("plain", last, LONG).await.unwrap();

    // The SQL does not fit any more: the events are parked, until they are too many.
    sqlx::raw_sql("alter table annals_plain.lines rename cents to pence").execute(pool).await.unwrap();
    let last = trade(3, 303).await;
    halts("column \"cents\" of relation \"lines\" does not exist").await;
    let count = parked(&app, "plain").await as u64;
    assert!((90..150).contains(&count), "{count}");
    sqlx::raw_sql("alter table annals_plain.lines rename pence to cents").execute(pool).await.unwrap();
    assert_eq!(control.retry("plain", &DeadLetters::All, &by("renamed back")).await.unwrap(), count);
    control.resume("plain", &by("renamed back")).await.unwrap();
    app.wait_for("plain", last, LONG).await.unwrap();
    eventually("nothing is parked", || async { parked(&app, "plain").await == 0 }).await;
    assert!(app.verify("plain").await.unwrap().equal);
    assert_eq!(assert_accounted(&app, "plain").await, (303, 303, 0, 0));

    // The table is gone: it halts where it stands, and parks nothing.
    sqlx::raw_sql("alter table annals_plain.lines rename to elsewhere").execute(pool).await.unwrap();
    let last = trade(303, 310).await;
    halts("relation \"lines\" does not exist").await;
    assert_eq!((parked(&app, "plain").await, status(&app, "plain").position.get()), (0, 303));
    sqlx::raw_sql("alter table annals_plain.elsewhere rename to lines").execute(pool).await.unwrap();
    control.resume("plain", &by("put back")).await.unwrap();
    app.wait_for("plain", last, LONG).await.unwrap();
    assert!(app.verify("plain").await.unwrap().equal);

    // Its rows are gone with it: a rebuild makes them again.
    sqlx::raw_sql("drop table annals_plain.lines").execute(pool).await.unwrap();
    trade(310, 311).await;
    halts("relation \"lines\" does not exist").await;
    control.rebuild("plain", None, &by("dropped by hand")).await.unwrap();
    let mended = "select count(*) from annals.generations where purpose = 'live' and state = 'running'";
    eventually("it is built again", || async {
        sqlx::query_scalar::<_, i64>(mended).fetch_one(pool).await.unwrap() == 1
    })
    .await;
    let last = trade(311, 312).await;
    app.wait_for("plain", last, LONG).await.unwrap();
    assert!(app.verify("plain").await.unwrap().equal);
    assert_eq!(assert_accounted(&app, "plain").await, (312, 312, 0, 0));
}

/// Never ends at one event, and in one thread.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Hanging(Vec<i64>);

impl View for Hanging {
    const NAME: &'static str = "hanging";
    const FAILURES: FailurePolicy =
        FailurePolicy { attempts: 1, deadline: Duration::from_millis(1_500), ..FailurePolicy::PARK };
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        vec![recorded.stream.id().into(), "all".into()]
    }

    fn apply(&mut self, key: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        if **key == *"1" && recorded.version.get() == 2 {
            std::thread::sleep(Duration::from_secs(6));
        }
        self.0.push(recorded.position.get());
        Change::Keep
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_does_not_end_counts_as_failed_for_its_event_and_key() {
    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().view::<Hanging>().start().await.unwrap();

    append(&app, "order-1", &[("x", 1), ("x", 2), ("x", 3)]).await;
    let last = append(&app, "order-2", &[("x", 1)]).await;
    app.wait_for("hanging", last, LONG).await.unwrap();

    let row = |position, state: &str| (position, "1".to_owned(), false, state.to_owned());
    assert_eq!(letters(&app, "hanging").await, [row(2, "failed"), row(3, "queued")]);
    assert_eq!(app.get::<Hanging>("all").await.unwrap(), Some(Hanging(vec![1, 2, 3, 4])));
    assert_eq!(app.get::<Hanging>("1").await.unwrap(), Some(Hanging(vec![1])));
    assert_eq!(assert_accounted(&app, "hanging").await, (8, 6, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_any_characters_are_parked_and_tried_again() {
    let database = database().await;
    let app = app(database.url()).await;
    let long = "ö".repeat(999);
    let names = ["p\u{a0}", "p'", "p\"", "p'); drop table documents; --", "p\na", "p🦀", "p%", &long];
    poison().extend(names.iter().map(ToString::to_string));
    let events: Vec<(&str, i64)> = names.iter().map(|name| (*name, 1)).collect();

    append(&app, "order-1", &events).await;
    let last = append(&app, "order-1", &events).await;
    app.wait_for("history", last, LONG).await.unwrap();
    assert_eq!(parked(&app, "history").await, 2 * names.len());
    names.iter().for_each(|name| {
        poison().remove(*name);
    });
    let retried = app.store().followers().retry("history", &DeadLetters::All, &by("mended")).await.unwrap();
    eventually("nothing is parked", || async { parked(&app, "history").await == 0 }).await;

    assert_eq!(retried, names.len() as u64);
    for (nth, name) in (1..).zip(names) {
        assert_eq!(history(&app, name).await, Some(vec![nth, nth + names.len() as i64]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_streams_of_any_characters_are_explained_discarded_verified_and_built_again() {
    let database = database().await;
    let app = app(database.url()).await;
    let control = app.store().followers();
    let names = ["q'", "q\"", "q'; drop table documents; --", "q\na", "q🦀", "q\\", "q%_", "q{},null"];
    let stream = "order-'; drop schema annals cascade; -- \"🛒\" {}\\";
    let fate = |position: i64| {
        let control = control.clone();
        async move {
            let explained = control.explain(Position::new(position)).await.unwrap();
            let own = explained.into_iter().find(|explained| explained.follower == "history").unwrap();
            (own.fate, own.letters.first().map(|letter| letter.key.clone()))
        }
    };
    let rebuilt = async |name: &str| {
        let swaps = async || {
            let actions = control.actions(Some(name), 1_000).await.unwrap();
            actions.iter().filter(|action| action.action == "swap").count()
        };
        let before = swaps().await;
        control.rebuild(name, None, &by("odd")).await.unwrap();
        eventually("it is built again", || async { swaps().await > before }).await;
    };
    poison().extend(names.iter().map(ToString::to_string));
    let events: Vec<(&str, i64)> = names.iter().map(|name| (*name, 1)).collect();
    append(&app, stream, &events).await;
    // The longest key that an index takes, one that none does, and the stream of that behind it.
    let (longest, long) = ("q".repeat(2_000), "q".repeat(10_000));
    let last = append(&app, "order-'long'", &[(&longest, 1), (&long, 1), ("quo", 1), ("q'", 13)]).await;
    app.wait_for_all(last, LONG).await.unwrap();

    let parked_at = |(nth, name): (i64, &&str)| (nth, (*name).to_owned(), false, "failed".to_owned());
    let mut expected: Vec<_> = (1..).zip(&names).map(parked_at).collect();
    let of_stream = |position, state: &str| (position, "order-'long'".to_owned(), true, state.to_owned());
    expected.extend([of_stream(10, "failed"), of_stream(11, "queued"), of_stream(12, "queued")]);
    let mut found = letters(&app, "history").await;
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(letters(&app, "picky").await, [(12, "order-'long'".into(), false, "failed".into())]);
    let error = control.dead_letters(Some("history"), &DeadLetters::Event(Position::new(10)), 1).await.unwrap();
    assert!(error[0].error.as_ref().unwrap().contains("has 10000 bytes, the limit is 2000"), "{error:?}");
    for (nth, name) in (1..).zip(names) {
        assert_eq!(fate(nth).await, (Fate::Parked, Some(name.into())));
    }
    assert_eq!(history(&app, &longest).await, Some(vec![9]));
    assert!(app.verify("history").await.unwrap().equal);

    // Half of them are mended and tried again, half are discarded; so is the key that is too long.
    let (mended, discarded) = names.split_at(names.len() / 2);
    poison().retain(|name| !mended.contains(&&**name));
    for name in mended {
        assert_eq!(control.retry("history", &DeadLetters::Key((*name).into()), &by("mended")).await.unwrap(), 1);
    }
    for name in discarded {
        assert_eq!(control.discard("history", &DeadLetters::Key((*name).into()), &by("odd")).await.unwrap(), 1);
    }
    let event = DeadLetters::Event(Position::new(10));
    assert_eq!(control.discard("history", &event, &by("too long")).await.unwrap(), 1);
    let of_stream = DeadLetters::Key("order-'long'".into());
    assert_eq!(control.discard("picky", &of_stream, &by("thirteen")).await.unwrap(), 1);
    for name in ["history", "picky"] {
        eventually("nothing is parked", || async { parked(&app, name).await == 0 }).await;
    }

    for built_again in [false, true] {
        if built_again {
            rebuilt("history").await;
            rebuilt("picky").await;
        }
        for (nth, name) in (1..).zip(names) {
            let is_mended = mended.contains(&name);
            let expected = if is_mended { (Fate::Applied, None) } else { (Fate::Discarded, Some(name.into())) };
            assert_eq!(fate(nth).await, expected);
            let own = if name == "q'" { vec![nth, 12] } else { vec![nth] };
            assert_eq!(history(&app, name).await, is_mended.then_some(own), "{name}");
        }
        assert_eq!(fate(10).await, (Fate::Discarded, Some("order-'long'".into())));
        assert_eq!((history(&app, "quo").await, history(&app, &longest).await), (Some(vec![11]), Some(vec![9])));
        assert_eq!(assert_accounted(&app, "history").await, (12, 7, 0, 5));
        assert_eq!(assert_accounted(&app, "picky").await, (12, 11, 0, 1));
        assert!(app.verify("history").await.unwrap().equal && app.verify("picky").await.unwrap().equal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_follower_stands_still_until_it_is_resumed_from_anywhere() {
    let database = database().await;
    let app = app(database.url()).await;
    let other = open(database.url()).await;
    let first = app.execute::<Order>(1, place("gil", 1)).await.unwrap();
    app.wait_for_all(first.position, LONG).await.unwrap();

    other.followers().pause("history", &by("month end")).await.unwrap();
    let second = app.execute::<Order>(2, place("gil", 1)).await.unwrap();
    app.wait_for("picky", second.position, LONG).await.unwrap();
    eventually("it shows", || async { status(&app, "history").state == FollowerState::Paused }).await;
    let paused = status(&app, "history");
    assert_eq!((paused.position, paused.last_error.as_deref()), (first.position, Some("month end, by tests")));
    assert_eq!(history(&app, "gil").await, Some(vec![1]));
    other.followers().resume("history", &by("done")).await.unwrap();
    app.wait_for("history", second.position, LONG).await.unwrap();

    assert_eq!(history(&app, "gil").await, Some(vec![1, 2]));
    let unknown = other.followers().pause("hystory", &by("typo")).await.unwrap_err().to_string();
    assert!(unknown.contains("no follower \"hystory\""), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rebuild_has_parked_too_is_listed_and_counted_once() {
    let database = database().await;
    let app = app(database.url()).await;
    poison().insert("eve".into());
    append(&app, "order-1", &[("eve", 1), ("eve", 2), ("eve", 3)]).await;
    let last = append(&app, "order-2", &[("fay", 1); 500]).await;
    app.wait_for("history", last, LONG).await.unwrap();

    let control = app.store().followers();
    control.rebuild("history", Some(3.0), &by("slowly")).await.unwrap();
    let rows = || async {
        let counting = "select count(*) from annals.dead_letters where follower = 'history' and key = 'eve'";
        sqlx::query_scalar::<_, i64>(counting).fetch_one(app.store().pool()).await.unwrap()
    };
    eventually("both have parked them", || async { rows().await == 6 }).await;
    let eve = |position, state: &str| (position, "eve".to_owned(), false, state.to_owned());
    assert_eq!(letters(&app, "history").await, [eve(1, "failed"), eve(2, "queued"), eve(3, "queued")]);
    assert_eq!(control.retry("history", &DeadLetters::All, &by("once")).await.unwrap(), 1);
    assert_eq!(control.discard("history", &DeadLetters::Event(Position::new(3)), &by("once")).await.unwrap(), 1);
    assert!(control.cancel_rebuild("history", &by("seen")).await.unwrap());
    assert_eq!(letters(&app, "history").await.len(), 2);
}
