//! Reactors, expectations, circuit breakers, and circles of all of them.

use annals::{
    Attention, CircuitBreaker, DeadLetters, Expectation, ExpectedVersion, FailurePolicy, FollowerState, NewEvent,
    Outcome, Reaction, Reactor, Target,
};

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::*;
use crate::app::place;

/// Writes to whoever ordered, once an event.
struct Notify(Arc<World>);

impl Reactor for Notify {
    const NAME: &'static str = "notify";
    const FAILURES: FailurePolicy = FailurePolicy { attempts: 1, ..FailurePolicy::PARK };
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        let what = &*reaction.event.event_type.clone();
        self.0.call(what, reaction.event.stream.id(), reaction.key).await.map(drop)
    }
}

async fn orders(url: &str) -> Builder {
    open(url).await.app().aggregate::<Order>().aggregate::<Account>()
}

async fn done(world: &World, order: &str, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> = expected.iter().map(|(what, count)| ((*what).into(), *count)).collect();
    eventually(&format!("{order}: {expected:?}"), || async { world.done(order) == expected }).await;
}

#[tokio::test]
async fn a_reactor_begins_at_now_keeps_the_order_of_a_stream_and_parks_what_fails() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.start().await.unwrap();
    app.execute::<Order>("before", place("ada", 1)).await.unwrap();
    app.shutdown().await;

    let app = orders(database.url()).await.reactor(Notify(world.clone())).start().await.unwrap();
    world.answers("Placed", "2", &[Answer::Down]);
    for order in ["1", "2"] {
        app.execute::<Order>(order, place("ada", 1)).await.unwrap();
        app.execute::<Order>(order, OrderCommand::Confirm).await.unwrap();
    }
    let last = app.execute::<Order>("3", place("ada", 1)).await.unwrap();
    app.wait_for("notify", last.position, LONG).await.unwrap();

    done(&world, "1", &[("Placed", 1), ("Confirmed", 1)]).await;
    assert_eq!((world.done("before"), world.done("2")), (BTreeMap::new(), BTreeMap::new()));
    let followers = app.store().followers();
    let letters = followers.dead_letters(Some("notify"), &DeadLetters::All, 10).await.unwrap();
    assert_eq!(letters.len(), 2, "the one that failed, and the one behind it");
    followers.retry("notify", &DeadLetters::All, &by()).await.unwrap();
    done(&world, "2", &[("Placed", 1), ("Confirmed", 1)]).await;
    let (calls, keys) = world.calls("Placed", "2");
    assert_eq!((calls, keys), (2, 1));
    for refused in [followers.rebuild("notify", None, &by()).await, followers.rename("notify", "tell", &by()).await] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("notify is a reactor, and builds nothing from the log"), "{refused}");
    }
    let refused = app.verify("notify").await.unwrap_err().to_string();
    assert!(refused.contains("builds nothing that could be compared"), "{refused}");
}

/// Writes only what is news.
struct News(Arc<World>);

impl Reactor for News {
    const NAME: &'static str = "news";
    const BEGIN: annals::Begin = annals::Begin::Start;
    const MAX_AGE: Option<Duration> = Some(Duration::from_secs(3600));
    const SKIP_IF_SUPERSEDED: bool = true;
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        assert!(reaction.age < Duration::from_secs(3600) && reaction.present == reaction.event.version);
        self.0.call("news", reaction.event.stream.id(), reaction.key).await.map(drop)
    }
}

#[tokio::test]
async fn what_is_old_or_superseded_is_left_out_and_that_is_recorded() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.start().await.unwrap();
    for order in ["old", "gone", "new"] {
        app.execute::<Order>(order, place("ada", 1)).await.unwrap();
    }
    app.execute::<Order>("gone", OrderCommand::Confirm).await.unwrap();
    let aged = "alter table annals.events disable trigger refuse_change;
                update annals.events set recorded_at = recorded_at - interval '1 day' where stream = 'order-old'";
    sqlx::raw_sql(aged).execute(app.store().pool()).await.unwrap();
    app.shutdown().await;

    let app = orders(database.url()).await.reactor(News(world.clone())).start().await.unwrap();
    let last = app.execute::<Order>("last", place("ada", 1)).await.unwrap();
    app.wait_for("news", last.position, LONG).await.unwrap();
    assert_eq!(["old", "gone", "new"].map(|order| world.done(order).len()), [0, 1, 1]);
    assert_eq!(crate::follow::assert_accounted(&app, "news").await, (5, 3, 0, 2));
    let skipped: Vec<(String, String)> =
        sqlx::query_as("select key, reason from annals.dead_letters where state = 'discarded' order by position")
            .fetch_all(app.store().pool())
            .await
            .unwrap();
    assert!(skipped[0].0 == "order-old" && skipped[0].1.ends_with("s old, and 3600s is the most"), "{skipped:?}");
    assert_eq!(skipped[1], ("order-gone".into(), "version 1 of its stream, which is at 2 by now".into()));
}

/// Confirms what is placed, once it is let.
struct Confirms {
    reacts: Arc<Semaphore>,
    may: Arc<Semaphore>,
}

impl Reactor for Confirms {
    const NAME: &'static str = "confirms";
    const FAILURES: FailurePolicy = FailurePolicy { attempts: 1, ..FailurePolicy::PARK };
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        if !matches!(reaction.event.event, OrderEvent::Placed { .. }) {
            return Ok(());
        }
        self.reacts.add_permits(1);
        let _may = self.may.acquire().await.map_err(StepError::transient)?;
        reaction.execute::<Order>(reaction.event.stream.id(), OrderCommand::Confirm).await.map(drop)
    }
}

#[tokio::test]
async fn what_a_reactor_could_not_do_because_its_app_was_shut_down_has_not_failed() {
    let database = database().await;
    let (reacts, may) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let start = async || {
        let confirms = Confirms { reacts: reacts.clone(), may: may.clone() };
        orders(database.url()).await.reactor(confirms).start().await.unwrap()
    };
    let app = start().await;
    app.execute::<Order>("1", place("ada", 1)).await.unwrap();
    reacts.acquire().await.unwrap().forget();

    let ending = tokio::spawn({
        let app = app.clone();
        async move { app.shutdown().await }
    });
    eventually("no more commands are taken", || async {
        app.execute::<Order>("2", OrderCommand::Confirm)
            .await
            .is_err_and(|error| error.to_string().contains("shut down"))
    })
    .await;
    may.add_permits(1);
    ending.await.unwrap();
    let app = start().await;

    timeout(LONG, reacts.acquire()).await.expect("it is given again").unwrap().forget();
    let last = app.execute::<Order>("3", place("ada", 1)).await.unwrap();
    app.wait_for("confirms", last.position, LONG).await.unwrap();
    let letters = app.store().followers().dead_letters(Some("confirms"), &DeadLetters::All, 10).await.unwrap();
    assert_eq!(letters, []);
    assert_eq!(crate::follow::assert_accounted(&app, "confirms").await.2, 0);
}

/// Whoever orders, confirms in time.
struct Confirmation;

impl Expectation for Confirmation {
    const NAME: &'static str = "confirmation";
    type Event = OrderEvent;

    fn begin(event: &Recorded<OrderEvent>) -> Option<(Id, Duration)> {
        match &event.event {
            OrderEvent::Placed { cents, .. } => {
                Some((event.stream.id().into(), Duration::from_millis(cents.unsigned_abs())))
            }
            _ => None,
        }
    }

    fn end(event: &Recorded<OrderEvent>) -> Option<Id> {
        matches!(event.event, OrderEvent::Confirmed | OrderEvent::Cancelled { .. }).then(|| event.stream.id().into())
    }
}

#[tokio::test]
async fn what_does_not_end_in_time_is_told_once_and_listed_until_it_ends() {
    let (database, told) = (database().await, Arc::new(Mutex::new(vec![])));
    let start = |told: Arc<Mutex<Vec<Attention>>>| async {
        let builder = orders(database.url()).await.expectation::<Confirmation>();
        builder.on_attention(move |attention| told.lock().unwrap().push(attention)).start().await.unwrap()
    };
    let (app, other) = (start(told.clone()).await, start(told.clone()).await);
    app.execute::<Order>("slow", place("ada", 300)).await.unwrap();
    app.execute::<Order>("quick", place("ada", 60_000)).await.unwrap();
    app.execute::<Order>("quick", OrderCommand::Confirm).await.unwrap();
    let state = |id: &'static str, state: SagaState| {
        let app = app.clone();
        async move {
            eventually(&format!("{id} is {state:?}"), || async {
                instance(&app, id).await.is_some_and(|instance| instance.state == state)
            })
            .await;
        }
    };
    state("slow", SagaState::Stuck).await;
    state("quick", SagaState::Completed).await;
    eventually("somebody is told", || async { !told.lock().unwrap().is_empty() }).await;
    app.execute::<Order>("slow", OrderCommand::Confirm).await.unwrap();
    state("slow", SagaState::Completed).await;

    app.execute::<Order>("later", place("ada", 1)).await.unwrap();
    eventually("of the other one, too", || async { told.lock().unwrap().len() == 2 }).await;
    let told = told.lock().unwrap().clone();
    assert_eq!([&*told[0].id, &*told[1].id], ["slow", "later"]);
    assert_eq!((&*told[0].saga, told[0].step.as_deref()), ("confirmation", Some("end")));
    assert!(told[0].reason.starts_with("what it waits for did not come in time"));
    other.shutdown().await;
}

const GATEWAY: Target =
    Target { failures: 3, at_once: 2, open_for: Duration::from_millis(600), ..Target::new("gateway") };

/// Pays at a gateway that may be away for longer than its attempts would last.
struct Paying(Arc<World>);

impl Saga for Paying {
    const NAME: &'static str = "paying";
    type Event = OrderEvent;
    type Input = ();

    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, ())> {
        matches!(event.event, OrderEvent::Placed { .. }).then(|| (event.stream.id().into(), ()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        let patient = RetryPolicy { attempts: 5, ..QUICK };
        steps
            .step("pay", |cx| async move { cx.saga.0.call("pay", "all", cx.key).await })
            .retry(patient)
            .calls(GATEWAY)
            .end()
    }
}

#[tokio::test]
async fn while_a_target_is_away_it_is_left_alone_and_all_go_on_when_it_is_back() {
    const ORDERS: usize = 60;
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.saga(Paying(world.clone())).start().await.unwrap();
    world.answers("pay", "all", &[Answer::Down; 9]);
    for order in 0..ORDERS {
        app.execute::<Order>(order, place("ada", 1)).await.unwrap();
    }
    let breakers = app.store().breakers();
    let one = || async {
        let breakers: Vec<CircuitBreaker> = breakers.list().await.unwrap();
        breakers.into_iter().next()
    };
    eventually("it is seen to be open", || async { one().await.is_some_and(|it| it.state == "open") }).await;
    let shown = one().await.unwrap();
    assert_eq!((&*shown.target, shown.last_error.as_deref()), ("gateway", Some("down")));
    let waiting = app.sagas().list(&SagaFilter::default(), 1).await.unwrap().remove(0);
    assert!(waiting.state == SagaState::Running);

    eventually("all are paid", || async { app.sagas().summary().await.unwrap()["paying"].completed == ORDERS as u64 })
        .await;
    // Those that opened it, those that were under way then, and one at a time.
    assert_eq!(world.calls("pay", "all").0, ORDERS + 9);
    eventually("it is seen to be closed", || async { one().await.is_some_and(|it| it.state == "closed") }).await;
}

/// Sends two letters about each order, through the gateway that payments go through.
struct Letters(Arc<World>);

impl Reactor for Letters {
    const NAME: &'static str = "letters";
    const TARGET: Option<Target> = Some(GATEWAY);
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        let order = reaction.event.stream.id();
        self.0.call("bill", order, reaction.nth_key(0)).await?;
        self.0.call("leaflet", order, reaction.nth_key(1)).await.map(drop)
    }
}

#[tokio::test]
async fn an_operator_has_nobody_called_and_everybody_again() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let builder = orders(database.url()).await.saga(Paying(world.clone())).reactor(Letters(world.clone()));
    let app = builder.start().await.unwrap();
    let letters = || async { app.store().followers().dead_letters(None, &DeadLetters::All, 9).await.unwrap() };
    let breakers = app.store().breakers();
    eventually("it is known", || async { !breakers.list().await.unwrap().is_empty() }).await;
    breakers.open("gateway", &by()).await.unwrap();
    let is_held = || async { breakers.list().await.unwrap()[0].held_by == Some(("ops".into(), "a test".into())) };
    eventually("it is held open", is_held).await;
    app.execute::<Order>("1", place("ada", 1)).await.unwrap();
    eventually("it waits", || async {
        instance(&app, "1").await.is_some_and(|it| it.waits_for.as_deref() == Some("gateway"))
    })
    .await;
    assert_eq!((world.calls("pay", "all").0, world.calls("bill", "1").0), (0, 0));
    let why = || async {
        let query = "select last_error from annals.checkpoints where follower = 'letters'";
        sqlx::query_scalar::<_, Option<String>>(query).fetch_one(app.store().pool()).await.unwrap()
    };
    eventually("the reactor says what it waits for", || async {
        why().await.as_deref() == Some("the circuit breaker before gateway is open")
    })
    .await;
    breakers.close("gateway", &by()).await.unwrap();
    eventually("it is paid", || async { app.sagas().summary().await.unwrap()["paying"].completed == 1 }).await;
    // The reactor has waited, too: nothing of it has failed.
    done(&world, "1", &[("bill", 1), ("leaflet", 1)]).await;
    assert_ne!(world.keys("bill", "1"), world.keys("leaflet", "1"));
    assert!(letters().await.is_empty());
    let refused = breakers.open("nobody", &by()).await.unwrap_err().to_string();
    assert!(refused.contains("no process that is alive calls \"nobody\""), "{refused}");
}

/// Tells somebody who takes one call at a time and is slow.
struct Slowly(Arc<World>);

impl Reactor for Slowly {
    const NAME: &'static str = "slowly";
    const BEGIN: annals::Begin = annals::Begin::Start;
    const FAILURES: FailurePolicy = FailurePolicy { deadline: Duration::from_secs(4), ..FailurePolicy::PARK };
    const TARGET: Option<Target> = Some(Target { at_once: 1, failures: 1, ..GATEWAY });
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        let told = self.0.call("tell", reaction.event.stream.id(), reaction.key).await;
        sleep(Duration::from_millis(120)).await;
        told.map(drop)
    }
}

#[tokio::test]
async fn calls_that_take_longer_together_than_a_batch_may_are_not_cut_off_and_repeated() {
    const ORDERS: usize = 50;
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.start().await.unwrap();
    for order in 0..ORDERS {
        app.execute::<Order>(order, place("ada", 1)).await.unwrap();
    }
    app.shutdown().await;

    let app = orders(database.url()).await.reactor(Slowly(world.clone())).start().await.unwrap();
    let last = app.execute::<Order>("last", place("ada", 1)).await.unwrap();
    app.wait_for("slowly", last.position, LONG).await.unwrap();

    for order in 0..ORDERS {
        assert_eq!(world.calls("tell", &order.to_string()), (1, 1), "{order}");
    }
    let breakers = app.store().breakers().list().await.unwrap();
    assert_eq!((&*breakers[0].state, breakers[0].last_error.as_deref()), ("closed", None));
    assert_eq!(crate::follow::assert_accounted(&app, "slowly").await, (51, 51, 0, 0));
}

#[tokio::test]
async fn what_waits_behind_a_parked_event_is_done_once_though_it_takes_several_turns_with_new_events_between() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.start().await.unwrap();
    world.answers("tell", "hot", &[Answer::Down]);
    app.execute::<Order>("hot", place("ada", 1)).await.unwrap();
    let confirmed = (0..30).map(|_| NewEvent::of(&OrderEvent::Confirmed).unwrap()).collect();
    let hot = StreamId::new("order-hot").unwrap();
    app.store().append(&hot, ExpectedVersion::Any, confirmed).await.unwrap();
    app.shutdown().await;

    let app = orders(database.url()).await.reactor(Slowly(world.clone())).start().await.unwrap();
    let new = AtomicUsize::new(0);
    eventually("all of it is told", || async {
        let newest = new.load(Ordering::SeqCst);
        if newest == 0 || world.calls("tell", &newest.to_string()).0 > 0 {
            app.execute::<Order>(newest + 1, place("ada", 1)).await.unwrap();
            new.store(newest + 1, Ordering::SeqCst);
        }
        world.calls("tell", "hot").1 == 31
    })
    .await;
    let last = app.execute::<Order>("last", place("ada", 1)).await.unwrap();
    app.wait_for("slowly", last.position, LONG).await.unwrap();
    eventually("nothing is parked", || async { crate::follow::assert_accounted(&app, "slowly").await.2 == 0 }).await;
    assert_eq!(world.calls("tell", "hot"), (32, 31));
}

/// Tells somebody who is slow, and how many calls have been under way at once.
struct Counted {
    world: Arc<World>,
    under_way: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Reactor for Counted {
    const NAME: &'static str = "counted";
    const BEGIN: annals::Begin = annals::Begin::Start;
    const FAILURES: FailurePolicy = FailurePolicy { storm_events: 1_000, ..FailurePolicy::PARK };
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        self.world.call("tell", reaction.event.stream.id(), reaction.key).await?;
        self.most.fetch_max(self.under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sleep(Duration::from_millis(300)).await;
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn parked_events_of_many_streams_are_tried_again_side_by_side_and_those_of_one_in_order() {
    const ORDERS: usize = 30;
    let (database, world, most) = (database().await, Arc::new(World::default()), Arc::new(AtomicUsize::new(0)));
    let app = orders(database.url()).await.start().await.unwrap();
    for order in 0..ORDERS {
        // The first ones fail twice: once ahead of the retry, which counts as its attempt.
        let downs = [Answer::Down; 2];
        world.answers("tell", &order.to_string(), if order < 3 { &downs } else { &downs[..1] });
        app.execute::<Order>(order, place("ada", 1)).await.unwrap();
        app.execute::<Order>(order, OrderCommand::Confirm).await.unwrap();
    }
    app.shutdown().await;

    let counted = Counted { world: world.clone(), under_way: AtomicUsize::new(0), most: most.clone() };
    let app = orders(database.url()).await.reactor(counted).start().await.unwrap();
    let nothing_is_parked = || async {
        app.store().followers().dead_letters(Some("counted"), &DeadLetters::All, 100).await.unwrap().is_empty()
            && world.calls("tell", "0").1 == 2
    };
    eventually("all are told", nothing_is_parked).await;

    for order in 0..ORDERS {
        let keys = world.keys("tell", &order.to_string());
        let (first, attempts) = (keys[0], if order < 3 { 3 } else { 2 });
        assert!(
            keys.iter().take_while(|key| **key == first).count() == attempts && keys.len() == attempts + 1,
            "{order}"
        );
    }
    assert!(most.load(Ordering::SeqCst) >= 5, "{most:?}");
    assert_eq!(crate::follow::assert_accounted(&app, "counted").await, (60, 60, 0, 0));
}

/// Pays at the same gateway, and has little time.
struct Hurried(Arc<World>);

impl Saga for Hurried {
    const NAME: &'static str = "hurried";
    type Event = OrderEvent;
    type Input = ();

    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, ())> {
        Paying::start(event)
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        let pays = steps.step("pay", |cx| async move { cx.saga.0.call("pay", &cx.id, cx.key).await });
        pays.calls(GATEWAY)
            .retry(QUICK)
            .timeout(Duration::from_millis(700))
            .attempt_timeout(Duration::from_secs(2))
            .end()
    }
}

#[tokio::test]
async fn a_no_never_opens_a_circuit_and_an_open_one_uses_up_time_and_no_attempts() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.saga(Hurried(world.clone())).start().await.unwrap();
    let breakers = app.store().breakers();
    let state = || async { breakers.list().await.unwrap().first().map(|it| it.state.clone()) };
    let compensated = |count: u64| {
        let app = &app;
        async move {
            eventually("all are undone", || async {
                app.sagas().summary().await.unwrap()["hurried"].compensated == count
            })
            .await;
        }
    };
    for order in 0..30 {
        world.answers("pay", &order.to_string(), &[Answer::Declined]);
        app.execute::<Order>(order, place("ada", 1)).await.unwrap();
    }
    compensated(30).await;
    assert_eq!(state().await.as_deref(), Some("closed"));

    breakers.open("gateway", &by()).await.unwrap();
    eventually("it is open", || async { state().await.as_deref() == Some("held open") }).await;
    app.execute::<Order>("late", place("ada", 1)).await.unwrap();
    compensated(31).await;
    let late = instance(&app, "late").await.unwrap();
    assert_eq!(late.reason.as_deref(), Some("pay did not succeed in its time"));
    assert_eq!(world.calls("pay", "late").0, 0);
}

/// A worker thread that has nothing to do and does not see it would keep the app from ending.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_resolved_while_a_call_hangs_past_its_time_keeps_nobody_busy() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.saga(Hurried(world.clone())).start().await.unwrap();
    world.answers("pay", "1", &[Answer::Hangs]);
    app.execute::<Order>("1", place("ada", 1)).await.unwrap();
    let is = |state: SagaState| {
        let app = &app;
        async move { instance(app, "1").await.is_some_and(|it| it.state == state) }
    };
    eventually("its time is over", || is(SagaState::Undoing)).await;
    app.sagas().resolve("hurried", "1", Outcome::Compensated, &by()).await.unwrap();
    let is_free = || async { instance(&app, "1").await.is_some_and(|it| it.owner.is_none()) };
    eventually("nobody runs it", is_free).await;
    assert!(is(SagaState::Compensated).await);
    timeout(LONG, app.shutdown()).await.unwrap();
}

/// Calls somebody who takes one call at a time.
struct Queueing(Arc<World>);

impl Saga for Queueing {
    const NAME: &'static str = "queueing";
    type Event = OrderEvent;
    type Input = ();

    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, ())> {
        Paying::start(event)
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .step("call", |cx| async move { cx.saga.0.call("call", &cx.id, cx.key).await })
            .calls(Target { at_once: 1, ..GATEWAY })
            .attempt_timeout(Duration::from_millis(1_500))
            .end()
    }
}

#[tokio::test]
async fn a_call_that_waits_for_its_turn_is_not_made_once_its_saga_is_called_off() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.saga(Queueing(world.clone())).start().await.unwrap();
    world.answers("call", "1", &[Answer::Hangs]);
    app.execute::<Order>("1", place("ada", 1)).await.unwrap();
    eventually("the first one calls", || async { world.calls("call", "1").0 == 1 }).await;
    app.execute::<Order>("2", place("ada", 1)).await.unwrap();
    eventually("the second one waits", || async { instance(&app, "2").await.is_some_and(|it| it.step.is_some()) })
        .await;

    app.sagas().cancel("queueing", "2", &by()).await.unwrap();
    let is_over = || async { instance(&app, "2").await.is_some_and(|it| it.state == SagaState::Compensated) };
    eventually("it is over", is_over).await;
    assert_eq!(world.calls("call", "2").0, 0);
    eventually("the first one is done", || async { world.done("1") == [("call".into(), 1)].into() }).await;
}

#[tokio::test]
async fn what_was_under_way_when_a_history_could_not_be_read_any_more_may_have_happened() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let app = orders(database.url()).await.saga(Queueing(world.clone())).start().await.unwrap();
    world.answers("call", "1", &[Answer::Hangs]);
    app.execute::<Order>("1", place("ada", 1)).await.unwrap();
    eventually("it calls", || async { world.calls("call", "1").0 == 1 }).await;
    // As a newer build writes it, of which this one knows nothing.
    let pool = sqlx::PgPool::connect(database.url()).await.unwrap();
    let planted = "insert into annals.events (version, event_id, correlation_id, stream, event_type, payload)
                   select max(version) + 1, gen_random_uuid(), gen_random_uuid(), stream, 'SagaDreamed', '{}'
                   from annals.events where stream = '$queueing-1' group by stream";
    sqlx::query(planted).execute(&pool).await.unwrap();
    let is_stuck = || async { instance(&app, "1").await.is_some_and(|it| it.state == SagaState::Stuck) };
    eventually("it is stuck", is_stuck).await;
    let reason = instance(&app, "1").await.unwrap().reason.unwrap();
    assert!(reason.starts_with("its history cannot be read by this build"), "{reason}");
    // Who cannot read it does not have it go on, either.
    let refused = app.sagas().retry("queueing", "1", &by()).await.unwrap_err().to_string();
    assert!(refused.contains("its history cannot be read by this build"), "{refused}");
    assert!(is_stuck().await);

    // As if it were read by one that can.
    let known = r#"alter table annals.events disable trigger user;
        update annals.events set event_type = 'SagaRetried', payload = '{"reason":"a dream"}' where event_type = 'SagaDreamed';
        alter table annals.events enable trigger user"#;
    sqlx::raw_sql(known).execute(&pool).await.unwrap();
    app.sagas().retry("queueing", "1", &by()).await.unwrap();
    eventually("it ends", || async { app.sagas().summary().await.unwrap()["queueing"].completed == 1 }).await;
    assert_eq!(world.calls("call", "1"), (2, 1));
    let history = app.sagas().history("queueing", "1").await.unwrap();
    let is_unknown = |event: &SagaEvent| matches!(event, SagaEvent::StepFailed { unknown: true, error, .. } if error.contains("has ended"));
    assert!(history.iter().any(|recorded| is_unknown(&recorded.event)), "{history:#?}");
}

/// All of its steps at once, or so it seems.
struct Nested;

impl Saga for Nested {
    const NAME: &'static str = "nested";
    type Event = OrderEvent;
    type Input = ();

    fn start(_: &Recorded<OrderEvent>) -> Option<(Id, ())> {
        None
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps.at_once(|steps| {
            let steps = steps.step("first", |_| async { Ok(()) });
            steps.at_once(|steps| steps.step("a", |_| async { Ok(()) }).step("b", |_| async { Ok(()) }))
        })
    }
}

#[tokio::test]
async fn what_does_not_fit_together_is_refused_at_the_start() {
    let (database, world) = (database().await, Arc::new(World::default()));
    let both = orders(database.url()).await.saga(Paying(world.clone())).saga(Queueing(world));
    let refused = both.start().await.unwrap_err().to_string();
    assert!(refused.contains("two targets are called \"gateway\" and differ"), "{refused}");
    let refused = orders(database.url()).await.saga(Nested).start().await.unwrap_err().to_string();
    assert!(refused.contains("at_once() in the steps of nested is said within another"), "{refused}");
}

/// Begins again whenever the reactor beside it has reacted: each of its orders leads to another.
struct Circle;

impl Saga for Circle {
    const NAME: &'static str = "circle";
    type Event = OrderEvent;
    type Input = u32;

    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, u32)> {
        let nth = event.stream.id().parse::<u32>().ok().filter(|nth| nth % 2 == 1)?;
        matches!(event.event, OrderEvent::Placed { .. }).then(|| (nth.into(), nth))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps.command::<Order>("again", |cx| Ok(((*cx.input + 1).into(), place("ada", 1)))).end()
    }
}

impl Reactor for Circle {
    const NAME: &'static str = "circle_back";
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        let nth = reaction.event.stream.id().parse::<u32>().map_err(StepError::business)?;
        if nth.is_multiple_of(2) {
            reaction.execute::<Order>(nth + 1, place("ada", 1)).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_circle_of_saga_command_and_reactor_is_bounded_and_reported() {
    let database = database().await;
    let app = orders(database.url()).await.saga(Circle).reactor(Circle).start().await.unwrap();
    app.execute::<Order>("1", place("ada", 1)).await.unwrap();
    let followers = app.store().followers();
    let parked = || async { followers.dead_letters(None, &DeadLetters::All, 10).await.unwrap() };
    eventually("it is parked", || async { !parked().await.is_empty() }).await;
    let letter = parked().await.remove(0);
    let error = letter.error.unwrap();
    assert!(error.contains("more than 32 events led to this one, each by itself"), "{error}");
    assert!(error.contains("order Placed > $circle SagaStarted > order Placed > order Placed"), "{error}");
    let begun = app.sagas().summary().await.unwrap()["circle"].completed;
    assert!((6..=17).contains(&begun), "{begun}");
    assert!(app.followers().iter().all(|it| it.state == FollowerState::Running));
}
