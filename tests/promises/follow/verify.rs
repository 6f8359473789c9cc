//! Verify finds every row that is not what the log says; explain tells what became of an event.

use annals::{
    App, BoxError, DeadLetters, ExpectedVersion, FailurePolicy, Fate, NewEvent, Position, Projector, Recorded,
    StreamId, testing::database,
};

use super::{assert_accounted, by, parked, shop};
use crate::{
    app::place,
    kit::{Account, AccountCommand, LONG, eventually, open},
    shop::{Order, OrderCommand, OrderEvent, Spend},
};

async fn run(app: &App, statement: &'static str) {
    sqlx::raw_sql(statement).execute(app.store().pool()).await.unwrap();
}

async fn traded(url: &str) -> App {
    let app = shop(url, |_| ()).await;
    for nth in 0..60 {
        app.execute::<Order>(nth, place(&format!("c{}", nth % 7), nth)).await.unwrap();
        if nth % 3 == 0 {
            app.execute::<Order>(nth, OrderCommand::Confirm).await.unwrap();
        }
    }
    let last = app.execute::<Order>(60, place("ada", 1)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    app
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_as_the_log_has_it_is_equal_while_the_log_grows() {
    let database = database().await;
    let app = traded(database.url()).await;

    let writing = async {
        for nth in 100..160 {
            app.execute::<Order>(nth, place("bob", 1)).await.unwrap();
        }
    };
    let (spend, ()) = tokio::join!(app.verify("spend"), writing);
    let journal = app.verify("journal").await.unwrap();

    let spend = spend.unwrap();
    assert!(spend.equal && spend.first_difference.is_none() && spend.rows >= 8, "{spend:?}");
    assert!(spend.position >= Position::new(61), "{spend:?}");
    assert_eq!((journal.equal, journal.rows, journal.position.get()), (true, 141, 141));
    let left = "select count(*) from annals.generations where purpose <> 'live'";
    let left = || async { sqlx::query_scalar::<_, i64>(left).fetch_one(app.store().pool()).await.unwrap() };
    eventually("nothing is left of it", || async { left().await == 0 }).await;
    let unknown = app.verify("spent").await.unwrap_err().to_string();
    assert!(unknown.contains("no view or projector \"spent\""), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_corrupted_dropped_or_added_is_found() {
    let database = database().await;
    let app = traded(database.url()).await;

    for (spoil, mend, table, key, sides) in [
        (
            "update annals_spend.documents set document = jsonb_set(document, '{cents}', '1') where key = 'c3'",
            "update annals_spend.documents set document = jsonb_set(document, '{cents}', '279') where key = 'c3'",
            "documents",
            "[\"c3\"]",
            (true, true),
        ),
        (
            "create table public.kept as select * from annals_spend.documents where key = 'c4'; \
             delete from annals_spend.documents where key = 'c4'",
            "insert into annals_spend.documents select * from public.kept",
            "documents",
            "[\"c4\"]",
            (false, true),
        ),
        (
            "insert into annals_spend.documents values ('c99', '{}')",
            "delete from annals_spend.documents where key = 'c99'",
            "documents",
            "[\"c99\"]",
            (true, false),
        ),
    ] {
        run(&app, spoil).await;
        let found = app.verify("spend").await.unwrap();
        run(&app, mend).await;

        let difference = found.first_difference.clone().unwrap();
        assert_eq!((found.equal, &*difference.table, &*difference.key), (false, table, key));
        assert_eq!((difference.live.is_some(), difference.clean.is_some()), sides, "{difference:?}");
    }
    assert!(app.verify("spend").await.unwrap().equal);
    run(&app, "update annals_journal.entries set version = 9 where position = 30").await;
    let found = app.verify("journal").await.unwrap().first_difference.unwrap();
    assert_eq!((&*found.table, &*found.key), ("entries", "[30]"));
    assert!(
        found.live.unwrap().contains("\"version\": 9") && found.clean.unwrap().contains("\"version\": "),
        "{}",
        found.key
    );
}

/// Refuses an amount, and numbers its rows by itself.
struct Numbered;

impl Projector for Numbered {
    const NAME: &'static str = "numbered";
    const FAILURES: FailurePolicy = FailurePolicy { attempts: 1, ..FailurePolicy::PARK };
    const TABLES: &'static str = "create table lines (line bigint generated always as identity primary key, \
        stream text not null, cents bigint not null constraint small check (cents < 1000), made_at timestamptz not null default now())";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        for recorded in events {
            let cents = if let OrderEvent::Placed { cents, .. } = recorded.event { cents } else { 0 };
            let insert = sqlx::query("insert into lines (stream, cents) values ($1, $2)");
            insert.bind(recorded.stream.as_str()).bind(cents).execute(&mut *conn).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_or_discarded_is_left_out_of_both_and_explained() {
    let database = database().await;
    let store = open(database.url()).await;
    let builder = store.app().aggregate::<Order>().aggregate::<Account>().projector(Numbered).view::<Spend>();
    let app = builder.start().await.unwrap();
    let append = |stream: &'static str, cents: &'static [i64]| {
        let events =
            cents.iter().map(|cents| NewEvent::new("Placed", format!(r#"{{"customer":"ada","cents":{cents}}}"#)));
        let (app, events) = (app.clone(), events.collect());
        async move { app.store().append(&StreamId::new(stream).unwrap(), ExpectedVersion::Any, events).await.unwrap() }
    };
    append("order-1", &[1, 5_000, 2]).await;
    append("order-2", &[7_000, 3]).await;
    let other = app.execute::<Account>("ada", AccountCommand::Deposit(1)).await.unwrap();
    let last = append("order-3", &[4]).await;
    app.wait_for_all(last.position, LONG).await.unwrap();
    let control = store.followers();
    control.discard("numbered", &DeadLetters::Event(Position::new(4)), &by("a test order")).await.unwrap();
    eventually("what waited is applied", || async { parked(&app, "numbered").await == 2 }).await;

    let verified = app.verify("numbered").await.unwrap();
    assert_eq!((verified.equal, verified.rows), (true, 3), "{verified:?}");
    assert_eq!(assert_accounted(&app, "numbered").await, (6, 3, 2, 1));
    let fate = |position: i64| {
        let control = control.clone();
        async move {
            let explained = control.explain(Position::new(position)).await.unwrap();
            explained.into_iter().find(|explained| explained.follower == "numbered").unwrap()
        }
    };
    assert_eq!(
        (fate(1).await.fate, fate(2).await.fate, fate(3).await.fate),
        (Fate::Applied, Fate::Parked, Fate::Parked)
    );
    assert_eq!((fate(4).await.fate, fate(5).await.fate), (Fate::Discarded, Fate::Applied));
    assert_eq!(fate(4).await.letters[0].reason.as_deref(), Some("a test order"));
    let out = fate(other.position.get()).await.fate;
    assert_eq!(out, Fate::OutOfScope("it reads the categories order, not account".into()));
    control.pause("numbered", &by("explain")).await.unwrap();
    let later = append("order-3", &[5]).await;
    assert_eq!(fate(later.position.get()).await.fate, Fate::NotYet);
    let gap = control.explain(Position::new(99)).await.unwrap_err().to_string();
    assert!(gap.contains("there is no event at position 99"), "{gap}");

    // A rebuild tries what was parked again, and leaves out what was discarded.
    control.resume("numbered", &by("go on")).await.unwrap();
    app.wait_for_all(later.position, LONG).await.unwrap();
    let generation =
        || async { control.lag().await.unwrap().iter().find(|lag| lag.follower == "numbered").unwrap().generation };
    let old = generation().await;
    control.rebuild("numbered", None, &by("try")).await.unwrap();
    eventually("it is rebuilt", || async { generation().await != old }).await;
    assert_eq!(assert_accounted(&app, "numbered").await, (7, 4, 2, 1));
    assert_eq!(fate(4).await.fate, Fate::Discarded);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_partitions_changes_under_load_without_losing_or_repeating_anything() {
    let database = database().await;
    let (one, two) = tokio::join!(shop(database.url(), |_| ()), shop(database.url(), |_| ()));
    let control = one.store().followers();

    let mut orders = 0..;
    for partitions in [4, 3, 8, 1, 2] {
        let trade = |app: App, from: i64| async move {
            for nth in from..from + 60 {
                app.execute::<Order>(nth, place(&format!("c{}", nth % 11), 1)).await.unwrap();
            }
        };
        let from: i64 = orders.next().unwrap() * 1_000;
        let change = async {
            control.set_partitions("spend", partitions, &by("more room")).await.unwrap();
            control.set_partitions("journal", partitions, &by("more room")).await.unwrap();
        };
        tokio::join!(trade(one.clone(), from), trade(two.clone(), from + 500), change);
        let is_so = || async {
            let lag = control.lag().await.unwrap();
            lag.iter().all(|lag| lag.partitions == partitions as i32) && lag.len() == 2 * partitions as usize
        };
        eventually("there are so many", is_so).await;
    }
    let last = one.execute::<Order>("last", place("c1", 1)).await.unwrap();
    for app in [&one, &two] {
        app.wait_for_all(last.position, LONG).await.unwrap();
    }

    for name in ["spend", "journal"] {
        let verified = one.verify(name).await.unwrap();
        assert!(verified.equal, "{verified:?}");
        assert_eq!(assert_accounted(&one, name).await, (601, 601, 0, 0));
    }
    let entries: i64 =
        sqlx::query_scalar("select count(*) from annals_journal.entries").fetch_one(one.store().pool()).await.unwrap();
    assert_eq!(entries, 601);
    for refused in [0, 1_025] {
        let text = control.set_partitions("spend", refused, &by("odd")).await.unwrap_err().to_string();
        assert!(text.contains("1 to 1,024 are possible"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_and_sql_put_a_key_into_the_same_partition() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    // The golden vectors of framework/src/subscription/partition.rs.
    for (partitions, expected) in [(1, [1; 6]), (4, [3, 2, 3, 2, 3, 3]), (1_000, [611, 66, 111, 382, 43, 419])] {
        let keys = ["", "order-1", "order-2", "ada", "ö🦀", "order-0198c7d2"];
        let found: Vec<i32> = sqlx::query_scalar(
            "select annals.partition_of(key, $2) from unnest($1::text[]) with ordinality as k(key, nth) order by nth",
        )
        .bind(keys.as_slice())
        .bind(partitions)
        .fetch_all(app.store().pool())
        .await
        .unwrap();
        assert_eq!(found, expected);
    }
}
