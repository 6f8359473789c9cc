//! One document of a view is folded anew from the log, while everything else goes on.

use std::time::Duration;

use annals::{
    App, Change, DeadLetters, ExpectedVersion, FailurePolicy, Id, NewEvent, Recorded, StreamId, View, testing::database,
};
use futures::future::join_all;
use serde::{Deserialize, Serialize};

use super::{assert_accounted, by, parked, shop};
use crate::{
    app::place,
    kit::{LONG, eventually, open},
    shop::{Order, OrderCommand, OrderEvent, Spend},
};

async fn run(app: &App, statement: &'static str) {
    sqlx::raw_sql(statement).execute(app.store().pool()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_changed_dropped_or_invented_is_put_right_and_it_is_recorded() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    for nth in 0..20 {
        app.execute::<Order>(nth, place(&format!("c{}", nth % 4), nth)).await.unwrap();
    }
    let reason = "none left".to_owned();
    let last = app.execute::<Order>(1, OrderCommand::Cancel { reason }).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    run(&app, "update annals_spend.documents set document = '{\"cents\":0,\"orders\":1}' where key = 'c1'").await;
    run(&app, "delete from annals_spend.documents where key = 'c2'").await;
    run(&app, "insert into annals_spend.documents values ('nobody', '{\"cents\":1,\"orders\":1}')").await;

    let changed = app.rebuild_key::<Spend>("c1", &by("seen wrong")).await.unwrap();
    let dropped = app.rebuild_key::<Spend>("c2", &by("seen missing")).await.unwrap();
    let invented = app.rebuild_key::<Spend>("nobody", &by("seen")).await.unwrap();
    let right = app.rebuild_key::<Spend>("c3", &by("to be sure")).await.unwrap();

    assert_eq!((changed.changed, changed.events, changed.position), (true, 6, last.position));
    assert_eq!(changed.before.as_deref(), Some(r#"{"cents": 0, "orders": 1}"#));
    assert_eq!(changed.after.as_deref(), Some(r#"{"cents": 44, "orders": 4}"#));
    assert!(dropped.before.is_none() && dropped.after.is_some() && dropped.changed, "{dropped:?}");
    assert!(invented.before.is_some() && invented.after.is_none() && invented.changed, "{invented:?}");
    assert!(right.before == right.after && right.events == 5 && !right.changed, "{right:?}");
    let verified = app.verify("spend").await.unwrap();
    assert!(verified.equal, "{verified:?}");
    let actions = app.store().followers().actions(Some("spend"), 10).await.unwrap();
    assert_eq!(actions.iter().map(|action| &*action.action).collect::<Vec<_>>(), ["rebuild key"; 4]);
    assert_eq!((&*actions[3].actor, actions[3].reason.as_deref()), ("tests", Some("seen wrong")));
    let details = actions[3].details.clone().unwrap();
    assert!(details.contains(r#""key":"c1""#) && details.contains(r#""changed":true"#), "{details}");

    // The owner goes on from what was put in place, not from what it knew.
    app.execute::<Order>("more", place("nobody", 5)).await.unwrap();
    app.execute::<Order>("and", place("c1", 6)).await.unwrap();
    let last = app.execute::<Order>("more still", place("c2", 7)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    assert_eq!(app.get::<Spend>("nobody").await.unwrap(), Some(Spend { cents: 5, orders: 1 }));
    assert_eq!(app.get::<Spend>("c1").await.unwrap(), Some(Spend { cents: 50, orders: 5 }));
    assert!(app.verify("spend").await.unwrap().equal);
    assert_eq!(assert_accounted(&app, "spend").await, (24, 24, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_eight_writers_append_to_a_key_nothing_is_lost_or_applied_twice() {
    let database = database().await;
    let (app, other) = tokio::join!(shop(database.url(), |_| ()), shop(database.url(), |_| ()));
    let control = app.store().followers();
    control.set_partitions("spend", 3, &by("more room")).await.unwrap();
    let placed = app.execute::<Order>("first", place("ada", 1)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();

    let writers = join_all((0..8).map(|writer| {
        let app = if writer % 2 == 0 { &app } else { &other };
        async move {
            for nth in 0..60 {
                app.execute::<Order>(format!("{writer}-{nth}"), place("ada", 1)).await.unwrap();
            }
        }
    }));
    let rebuilds = async {
        for nth in 0..12 {
            if nth % 3 == 0 {
                run(
                    &app,
                    "update annals_spend.documents set document = '{\"cents\":-5,\"orders\":7}' where key = 'ada'",
                )
                .await;
            }
            app.rebuild_key::<Spend>("ada", &by("again and again")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(writers, rebuilds);
    let last = app.execute::<Order>("last", place("ada", 1)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();

    let end = app.rebuild_key::<Spend>("ada", &by("at the end")).await.unwrap();
    assert!(!end.changed && end.events == 482, "{end:?}");
    let last = app.execute::<Order>("behind", place("ada", 1)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 483, orders: 483 }));
    let verified = app.verify("spend").await.unwrap();
    assert!(verified.equal, "{verified:?}");
    assert_eq!(assert_accounted(&app, "spend").await, (483, 483, 0, 0));
}

/// What each customer spent, if he is not the unlucky one.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Lucky<const VERSION: u32>(i64);

impl<const VERSION: u32> View for Lucky<VERSION> {
    const NAME: &'static str = "lucky";
    const VERSION: u32 = VERSION;
    const FAILURES: FailurePolicy = FailurePolicy { attempts: 1, ..FailurePolicy::PARK };
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        Spend::keys(recorded)
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        if let OrderEvent::Placed { cents, .. } = recorded.event {
            assert!(cents != 13, "an unlucky number");
            self.0 += cents;
        }
        Change::Keep
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_parked_events_is_refused_until_they_are_discarded_and_left_out() {
    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().view::<Lucky<1>>().start().await.unwrap();
    let append = async |stream: &str, payload: &str| {
        let events = vec![NewEvent::new("Placed", payload)];
        app.store().append(&StreamId::new(stream).unwrap(), ExpectedVersion::Any, events).await.unwrap()
    };
    append("order-1", r#"{"customer":"ada","cents":1}"#).await;
    append("order-1", r#"{"customer":"ada","cents":13}"#).await;
    append("order-2", r#"{"customer":"ada","cents":4}"#).await;
    // Whose it is, nobody knows; what stands behind it in its stream is bob's.
    append("order-3", r#"{"customer":7}"#).await;
    append("order-3", r#"{"customer":"bob","cents":2}"#).await;
    let last = append("order-4", r#"{"customer":"bob","cents":5}"#).await;
    app.wait_for_all(last.position, LONG).await.unwrap();
    let rebuild = async |key: &'static str| app.rebuild_key::<Lucky<1>>(key, &by("a look")).await;
    let control = app.store().followers();

    let refused = rebuild("ada").await.unwrap_err().to_string();
    assert!(
        refused.contains("\"ada\" of lucky has events parked, the first at position 2: retry or discard"),
        "{refused}"
    );
    let refused = rebuild("bob").await.unwrap_err().to_string();
    assert!(refused.contains("\"bob\" of lucky has events parked, the first at position 5"), "{refused}");
    control.discard("lucky", &DeadLetters::All, &by("bad luck")).await.unwrap();
    eventually("nothing is parked", || async { parked(&app, "lucky").await == 0 }).await;
    let rebuilt = rebuild("ada").await.unwrap();
    assert_eq!((rebuilt.changed, rebuilt.events, rebuilt.after.as_deref()), (false, 1, Some("1")), "{rebuilt:?}");
    let rebuilt = rebuild("bob").await.unwrap();
    assert_eq!((rebuilt.changed, rebuilt.events, rebuilt.after.as_deref()), (false, 1, Some("5")), "{rebuilt:?}");

    let refused = app.rebuild_key::<Spend>("ada", &by("a look")).await.unwrap_err().to_string();
    assert!(refused.contains("view \"spend\" is not registered"), "{refused}");
    let refused = app.rebuild_key::<Lucky<1>>("a\0b", &by("a look")).await.unwrap_err().to_string();
    assert!(refused.contains("lucky has no such document: a key holds a NUL character"), "{refused}");
    // A later build has another fold, and builds the view anew: as slowly as it takes to look.
    run(&app, "create function hold() returns trigger language plpgsql as $$ begin new.state := 'paused'; return new; end $$; \
               create trigger hold before insert on annals.generations for each row when (new.purpose = 'rebuild') execute function hold()").await;
    let later = open(database.url()).await.app().aggregate::<Order>().view::<Lucky<2>>().start().await.unwrap();
    let refused = later.rebuild_key::<Lucky<2>>("ada", &by("a look")).await.unwrap_err().to_string();
    assert!(refused.contains("lucky is live in version 1, and this build has version 2"), "{refused}");
    let refused = rebuild("ada").await.unwrap_err().to_string();
    assert!(refused.contains("lucky is being rebuilt, and its document \"ada\" with it"), "{refused}");
    assert_eq!(
        control
            .actions(Some("lucky"), 10)
            .await
            .unwrap()
            .iter()
            .filter(|action| action.action == "rebuild key")
            .count(),
        2
    );
}
