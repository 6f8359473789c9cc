//! What becomes of an instance, whatever its steps do.

use annals::Options;

use super::*;
use crate::app::place;

#[tokio::test]
async fn an_order_goes_through_all_its_steps_and_each_takes_effect_once() {
    let shop = Shop::open().await;
    let correlation = Uuid::now_v7();
    let options = Options { correlation_id: Some(correlation), ..Options::default() };
    shop.app.execute_with::<Order>("1", place("ada", 100), options).await.unwrap();
    shop.is("1", SagaState::Completed).await;

    // Who asks for one request's correlation finds all that it led to; and each says what it came from.
    let began = &shop.app.sagas().history("fulfilment", "1").await.unwrap()[0];
    let [order, stock] = [shop.events("order-1").await, shop.events("account-stock").await];
    let (confirmed, paid) = (&order.last().unwrap().metadata, &stock.last().unwrap().metadata);
    assert_eq!(began.metadata.causation_id, Some(order[0].event_id));
    assert_eq!([confirmed.causation_id, paid.causation_id], [Some(began.event_id); 2]);
    assert_eq!([began.metadata.correlation_id, confirmed.correlation_id, paid.correlation_id], [Some(correlation); 3]);
    let same = SagaFilter { correlation_id: Some(correlation), ..SagaFilter::default() };
    assert_eq!(shop.app.sagas().list(&same, 9).await.unwrap().len(), 1);

    assert_eq!(shop.world.done("1"), [("pay".into(), 1), ("ship".into(), 1)].into());
    assert_eq!(shop.stock().await, 1_000_000 - 100);
    let kinds: Vec<String> = shop.history("1").await.iter().map(kind).collect();
    assert_eq!(
        kinds,
        [
            "SagaStarted",
            "StepStarted reserve",
            "StepCompleted reserve",
            "StepStarted pay",
            "StepCompleted pay",
            "StepStarted ship",
            "StepCompleted ship",
            "StepStarted confirm",
            "StepCompleted confirm",
            "SagaCompleted"
        ]
    );
}

fn kind(event: &SagaEvent) -> String {
    match event {
        SagaEvent::SagaStarted { .. } => "SagaStarted".into(),
        SagaEvent::StepStarted { step, .. } => format!("StepStarted {step}"),
        SagaEvent::StepCompleted { step, .. } => format!("StepCompleted {step}"),
        SagaEvent::StepFailed { step, .. } => format!("StepFailed {step}"),
        SagaEvent::UndoBegan { .. } => "UndoBegan".into(),
        SagaEvent::UndoStarted { step } => format!("UndoStarted {step}"),
        SagaEvent::StepUndone { step } => format!("StepUndone {step}"),
        SagaEvent::SagaCompleted => "SagaCompleted".into(),
        SagaEvent::SagaCompensated { .. } => "SagaCompensated".into(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn a_declined_payment_undoes_what_was_done_before_it() {
    let shop = Shop::open().await;
    shop.world.answers("pay", "1", &[Answer::Declined]);
    shop.place("1").await;
    let instance = shop.is("1", SagaState::Compensated).await;

    assert_eq!(instance.reason.as_deref(), Some("pay: declined"));
    assert_eq!(shop.world.done("1"), BTreeMap::new());
    assert_eq!(shop.stock().await, 1_000_000);
    let kinds: Vec<String> = shop.history("1").await.iter().map(kind).collect();
    assert_eq!(
        kinds[4..],
        ["StepFailed pay", "UndoBegan", "UndoStarted reserve", "StepUndone reserve", "SagaCompensated"]
    );

    // One who is away for longer than all attempts has not been paid, either.
    shop.world.answers("pay", "2", &[Answer::Down; 4]);
    shop.place("2").await;
    let instance = shop.is("2", SagaState::Compensated).await;
    assert_eq!((instance.reason.as_deref(), shop.world.calls("pay", "2")), (Some("pay: down"), (4, 1)));
    assert_eq!((shop.world.done("2"), shop.stock().await), (BTreeMap::new(), 1_000_000));
}

#[tokio::test]
async fn what_fails_for_a_while_or_loses_its_answer_is_done_once_under_one_key() {
    let shop = Shop::open().await;
    let troubles = [
        [Answer::Down, Answer::Down, Answer::Done],
        [Answer::Lost, Answer::Done, Answer::Done],
        [Answer::Silent, Answer::Lost, Answer::Done],
        [Answer::Panics, Answer::Done, Answer::Done],
        [Answer::Hangs, Answer::Down, Answer::Done],
    ];
    for (nth, answers) in troubles.iter().enumerate() {
        shop.world.answers("pay", &nth.to_string(), answers);
        shop.place(&nth.to_string()).await;
    }
    for nth in 0..troubles.len() {
        let order = nth.to_string();
        shop.is(&order, SagaState::Completed).await;
        assert_eq!(shop.world.done(&order), [("pay".into(), 1), ("ship".into(), 1)].into(), "{order}");
        let (calls, keys) = shop.world.calls("pay", &order);
        assert!(calls >= 2 && keys == 1, "{calls} calls under {keys} keys");
    }
    assert_eq!(shop.stock().await, 1_000_000 - 500);
}

#[tokio::test]
async fn an_undo_that_always_fails_is_stuck_until_an_operator_helps() {
    let told = Arc::new(Mutex::new(vec![]));
    let hears = told.clone();
    let shop = Shop::told(move |attention| hears.lock().unwrap().push(attention.id.to_string())).await;
    for order in ["1", "2"] {
        shop.world.answers("ship", order, &[Answer::Declined]);
        shop.world.answers("refund", order, &[Answer::Down; 8]);
        shop.place(order).await;
    }
    for order in ["1", "2"] {
        let stuck = shop.is(order, SagaState::Stuck).await;
        assert_eq!(stuck.step.as_deref(), Some("pay"));
        let reason = stuck.reason.unwrap();
        let key = shop.app.sagas().keys("fulfilment", order).await.unwrap()[1].undo;
        let expected = format!("pay could not be undone, after 4 attempts under the key {key}: down. Retry once");
        assert!(reason.starts_with(&expected), "{reason}");
        assert!(shop.world.keys("refund", order).iter().all(|own| *own == key));
        assert_eq!(stuck.due_at, None);
    }
    let sagas = shop.app.sagas();
    let counts = sagas.summary().await.unwrap()["fulfilment"];
    assert_eq!((counts.stuck, counts.running, counts.completed, counts.compensated), (2, 0, 0, 0));

    // Somebody is told of each, once; of what is stuck again, again.
    eventually("of both", || async { told.lock().unwrap().len() == 2 }).await;
    sagas.retry("fulfilment", "1", &by()).await.unwrap();
    eventually("once more", || async { told.lock().unwrap().len() == 3 }).await;
    let mut all = told.lock().unwrap().clone();
    all.sort();
    assert_eq!(all, ["1", "1", "2"]);
    shop.is("1", SagaState::Stuck).await;
    sagas.retry("fulfilment", "1", &by()).await.unwrap();
    sagas.skip("fulfilment", "2", "pay", &by()).await.unwrap();
    shop.is("1", SagaState::Compensated).await;
    shop.is("2", SagaState::Compensated).await;
    assert_eq!(shop.world.done("1"), [("pay".into(), 1), ("refund".into(), 1)].into());
    assert_eq!(shop.world.done("2"), [("pay".into(), 1)].into());
    let history = sagas.history("fulfilment", "2").await.unwrap();
    let skipped = history.iter().find(|recorded| matches!(recorded.event, SagaEvent::StepSkipped { .. })).unwrap();
    assert_eq!(skipped.metadata.actor.as_deref(), Some("ops"));
    let refused = sagas.retry("fulfilment", "1", &by()).await.unwrap_err().to_string();
    assert!(refused.contains("fulfilment 1: it has been undone: there is nothing to try again"), "{refused}");
}

#[tokio::test]
async fn of_a_step_that_nobody_knows_of_an_operator_says_that_it_did_not_happen() {
    let shop = Shop::open().await;
    shop.world.answers("pay", "1", &[Answer::Silent; 4]);
    shop.place("1").await;
    let stuck = shop.is("1", SagaState::Stuck).await;
    let sagas = shop.app.sagas();
    let keys = sagas.keys("fulfilment", "1").await.unwrap();
    let [_, pay] = &keys[..] else { panic!("{keys:?}") };
    assert_eq!((&*pay.step, shop.world.keys("pay", "1")), ("pay", vec![pay.key; 4]));
    let reason = stuck.reason.unwrap();
    assert!(reason.contains(&format!("Look for the key {} where", pay.key)), "{reason}");
    let listed = |part: &str| SagaFilter { reason: Some(part.into()), version: Some(1), ..SagaFilter::default() };
    assert_eq!(sagas.list(&listed("no attempts left"), 9).await.unwrap().len(), 1);
    assert_eq!(sagas.list(&listed("declined"), 9).await.unwrap().len(), 0);
    let other = SagaFilter { version: Some(2), ..SagaFilter::default() };
    assert_eq!(sagas.list(&other, 9).await.unwrap().len(), 0);

    let refused = sagas.not_done("fulfilment", "1", "ship", &by()).await.unwrap_err().to_string();
    assert!(refused.contains("it is not in doubt whether step \"ship\" happened"), "{refused}");
    let refused = sagas.complete("fulfilment", "1", "pay", 7.into(), &by()).await.unwrap_err().to_string();
    assert!(refused.contains("fulfilment 1: step pay does not come to 7: invalid type"), "{refused}");
    sagas.not_done("fulfilment", "1", "pay", &by()).await.unwrap();
    shop.is("1", SagaState::Completed).await;
    assert_eq!(shop.world.done("1"), [("pay".into(), 1), ("ship".into(), 1)].into());
    let now = &sagas.keys("fulfilment", "1").await.unwrap()[1];
    assert_eq!((&now.dead, shop.world.keys("pay", "1")[4]), (&vec![pay.key], now.key));
    assert_ne!(now.key, pay.key);
}

#[tokio::test]
async fn an_order_that_is_cancelled_while_its_payment_is_under_way_gives_the_money_back() {
    let shop = Shop::open().await;
    shop.world.answers("pay", "1", &[Answer::Hangs, Answer::Done]);
    shop.place("1").await;
    eventually("it pays", || async { shop.world.calls("pay", "1").0 == 1 }).await;
    shop.app.execute::<Order>("1", OrderCommand::Cancel { reason: "changed my mind".into() }).await.unwrap();
    let undone = shop.is("1", SagaState::Compensated).await;

    assert_eq!(undone.reason.as_deref(), Some("changed my mind"));
    // Whether it had been paid was not known: it was repeated under its key, and given back.
    assert_eq!(shop.world.done("1"), [("pay".into(), 1), ("refund".into(), 1)].into());
    assert_eq!(shop.stock().await, 1_000_000);
}

#[tokio::test]
async fn a_hundred_orders_at_once_all_end() {
    let shop = Shop::open().await;
    futures::future::join_all((0..100).map(|nth| {
        let shop = &shop;
        async move { shop.place(&nth.to_string()).await }
    }))
    .await;
    eventually("all end", || async { shop.app.sagas().summary().await.unwrap()["fulfilment"].completed == 100 }).await;
    assert_eq!(shop.stock().await, 1_000_000 - 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_write_an_order_comes_to_the_same_end_and_everything_outside_happened_once() {
    let ends = annals::testing::crash_everywhere(
        || {
            let world = Arc::new(World::default());
            world.answers("ship", "undone", &[Answer::Declined; 9]);
            world
        },
        |store, world| store.app().aggregate::<Order>().aggregate::<Account>().saga(Fulfilment(world.clone())),
        async |app, _| {
            app.execute::<Account>("stock", AccountCommand::Deposit(1_000)).await.unwrap();
            for order in ["done", "undone"] {
                let place = OrderCommand::Place { customer: "ada".into(), cents: 100 };
                app.execute::<Order>(order, place).await.unwrap();
            }
        },
        async |app, world| {
            let of = |order| async move { instance(app, order).await.map(|instance| instance.state) };
            let states = (of("done").await, of("undone").await);
            let calls = [("pay", "done"), ("pay", "undone"), ("refund", "undone")]
                .map(|(what, order)| world.calls(what, order).1);
            (states, world.done("done"), world.done("undone"), calls, crate::kit::balance(app, "stock").await)
        },
    )
    .await;
    // An append a step and a half: reserve, pay, ship, confirm; reserve, pay, decline, refund, release.
    assert!(ends >= 18, "{ends}");
    println!("{ends} points");
}

/// Two things at once, one that is left out, a wait that ends in three ways, and a letter about it.
struct Errand(Arc<World>);

impl Saga for Errand {
    const NAME: &'static str = "errand";
    type Event = OrderEvent;
    type Input = chrono::DateTime<chrono::Utc>;

    /// It waits for as many milliseconds as the order costs.
    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, Self::Input)> {
        match &event.event {
            OrderEvent::Placed { cents, .. } => {
                let waits = Duration::from_millis(cents.unsigned_abs());
                Some((event.stream.id().into(), event.recorded_at + waits))
            }
            _ => None,
        }
    }

    fn route(event: &Recorded<OrderEvent>) -> Option<Id> {
        Some(event.stream.id().into())
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .at_once(|steps| {
                steps
                    .step("left", |cx| async move { cx.saga.0.call("left", &cx.id, cx.key).await })
                    .undo(|cx, _| async move { cx.saga.0.call("not left", &cx.id, cx.key).await.map(drop) })
                    .step("right", |cx| async move { cx.saga.0.call("right", &cx.id, cx.key).await })
                    .undo(|cx, _| async move { cx.saga.0.call("not right", &cx.id, cx.key).await.map(drop) })
                    .retry(QUICK)
            })
            .step("third", |cx| async move { cx.saga.0.call("third", &cx.id, cx.key).await })
            .when(|facts| facts.output::<String>("left").is_err())
            .wait("word", |event| matches!(event.event, OrderEvent::Confirmed).then(|| String::from("yes")))
            .fails_by(|event| match &event.event {
                OrderEvent::Cancelled { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .or_else(|_| "nobody said".into())
            .until(|facts| *facts.input)
            .step("letter", |cx| async move {
                let said: String = cx.output("word")?;
                cx.saga.0.call(&said, &cx.id, cx.key).await
            })
            .end()
    }
}

/// Places an order about which the saga waits for so long, and does with it what is said.
async fn errand(app: &App, order: &str, waits_ms: i64, then: Option<OrderCommand>) {
    let place = OrderCommand::Place { customer: "ada".into(), cents: waits_ms };
    app.execute::<Order>(order, place).await.unwrap();
    if let Some(then) = then {
        app.execute::<Order>(order, then).await.unwrap();
    }
}

const LONG_MS: i64 = 600_000;

#[tokio::test]
async fn a_wait_goes_on_with_what_came_or_with_what_was_said_for_nothing() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = open(database.url()).await.app().aggregate::<Order>().saga(Errand(world.clone())).start().await.unwrap();
    errand(&app, "yes", LONG_MS, Some(OrderCommand::Confirm)).await;
    errand(&app, "silent", 1, None).await;
    for (order, said) in [("yes", "yes"), ("silent", "nobody said")] {
        eventually(&format!("{order} is done"), || async {
            instance(&app, order).await.is_some_and(|it| it.state == SagaState::Completed)
        })
        .await;
        assert_eq!(world.done(order), ["left", "right", said].map(|thing| (thing.to_owned(), 1)).into());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_at_once_and_a_wait_that_fails_by_its_event_come_to_the_same_end_wherever_they_are_killed() {
    let ends = annals::testing::crash_everywhere(
        || {
            let world = Arc::new(World::default());
            world.answers("right", "half", &[Answer::Declined; 9]);
            world
        },
        |store, world| store.app().aggregate::<Order>().saga(Errand(world.clone())),
        async |app, _| {
            errand(app, "no", LONG_MS, Some(OrderCommand::Cancel { reason: "not any more".into() })).await;
            errand(app, "half", LONG_MS, None).await;
        },
        async |app, world| {
            for (order, expected) in [("no", "word: not any more"), ("half", "right: declined")] {
                let ended = instance(app, order).await.unwrap();
                assert_eq!((ended.state, ended.reason.as_deref()), (SagaState::Compensated, Some(expected)));
                let done = world.done(order);
                assert_eq!((done.get("left"), done.get("right")), (done.get("not left"), done.get("not right")));
            }
        },
    )
    .await;
    assert!(ends >= 16, "{ends}");
}
