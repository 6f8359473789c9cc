use std::{convert::Infallible, time::Duration};

use chrono::DateTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Input, Phase, Plan, State, What, decide, effects, wakes_at};
use crate::{
    Event, FailureKind, Found, Id, Outcome, Recorded, RetryPolicy, Saga, SagaEvent, StepError, Steps, Target,
    testing::{GivenSaga, given_saga, recorded},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) enum TripEvent {
    Booked { nights: u32 },
    Paid { cents: i64 },
    Declined { reason: String },
    CalledOff,
}

impl Event for TripEvent {}

const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);

async fn done<T>(value: T) -> Result<T, StepError> {
    Ok(value)
}

/// Two bookings at once, a payment that comes as an event, a ticket.
pub(super) struct Trip;

impl Saga for Trip {
    const NAME: &'static str = "trip";
    type Event = TripEvent;
    type Input = u32;

    fn start(event: &Recorded<TripEvent>) -> Option<(Id, u32)> {
        match event.event {
            TripEvent::Booked { nights } => Some((event.stream.id().into(), nights)),
            _ => None,
        }
    }

    fn route(event: &Recorded<TripEvent>) -> Option<Id> {
        Some(event.stream.id().into())
    }

    fn cancel(event: &Recorded<TripEvent>) -> Option<(Id, String)> {
        let called_off = event.event == TripEvent::CalledOff;
        called_off.then(|| (event.stream.id().into(), "the guest called it off".into()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .at_once(|steps| {
                steps
                    .step("hotel", |cx| done(*cx.input))
                    .undo(|_, _: u32| done(()))
                    .retry(RetryPolicy::new(3, SECOND))
                    .step("flight", |_| done("F1".to_owned()))
                    .undo(|_, _: String| done(()))
                    .ask(|_| done(Found::Never))
                    .undo_retry(RetryPolicy::new(2, SECOND))
                    .timeout(MINUTE)
            })
            .wait("payment", |event| match event.event {
                TripEvent::Paid { cents } => Some(cents),
                _ => None,
            })
            .fails_by(|event| match &event.event {
                TripEvent::Declined { reason } => Some(reason.clone()),
                _ => None,
            })
            .timeout(10 * MINUTE)
            .undo(|_, _: i64| done(()))
            .calls(Target { key_life: Some(30 * SECOND), ..Target::new("bank") })
            .step("upgrade", |_| done(()))
            .when(|facts| facts.output::<i64>("payment").is_ok_and(|cents| cents > 10_000))
            .sleep("pause", MINUTE)
            .step("ticket", |_| done(()))
            .calls(Target { key_life: Some(30 * SECOND), ..Target::new("tickets") })
            .retry(RetryPolicy::new(3, 20 * SECOND))
            .end()
    }
}

#[track_caller]
fn booked() -> GivenSaga<Trip> {
    given_saga([recorded("trip-1", TripEvent::Booked { nights: 3 })])
}

#[track_caller]
fn paid(trip: GivenSaga<Trip>, cents: i64) -> GivenSaga<Trip> {
    trip.when([recorded("trip-1", TripEvent::Paid { cents })])
}

#[track_caller]
fn at_ticket() -> GivenSaga<Trip> {
    let trip = booked().succeeds("hotel", 3).succeeds("flight", "F1");
    paid(trip, 500).then_skipped("upgrade").then_waits(Some(MINUTE)).passes(MINUTE).then_runs(["ticket"])
}

#[test]
fn steps_run_in_order_and_those_of_a_stage_at_once() {
    let trip =
        booked().then_runs(["hotel", "flight"]).succeeds("flight", "F1").then_runs(["hotel"]).succeeds("hotel", 3);
    paid(trip.then_runs([]), 20_000)
        .then_runs(["upgrade"])
        .succeeds("upgrade", ())
        .then_runs([])
        .passes(MINUTE)
        .then_runs(["ticket"])
        .succeeds("ticket", ())
        .then_completed();
}

#[test]
fn a_completion_and_the_next_beginning_are_decided_together() {
    let trip = booked().succeeds("hotel", 3);
    let before = trip.history().len();
    let trip = trip.succeeds("flight", "F1");

    let names: Vec<&str> = trip.history()[before..].iter().map(name).collect();
    assert_eq!(names, ["StepCompleted flight", "StepStarted payment"]);
}

fn name(event: &SagaEvent) -> &'static str {
    match event {
        SagaEvent::StepCompleted { step, .. } if step == "flight" => "StepCompleted flight",
        SagaEvent::StepStarted { step, .. } if step == "payment" => "StepStarted payment",
        _ => "another",
    }
}

#[test]
fn a_business_failure_undoes_in_reverse_order_of_completion() {
    at_ticket()
        .fails("ticket", StepError::business("sold out"))
        .then_undoes("payment")
        .undone("payment")
        .then_undoes("flight")
        .undone("flight")
        .then_undoes("hotel")
        .undone("hotel")
        .then_compensated()
        .then_undone(["payment", "flight", "hotel"]);
    booked()
        .succeeds("flight", "F1")
        .succeeds("hotel", 3)
        .cancelled("no")
        .then_undoes("hotel")
        .undone("hotel")
        .undone("flight")
        .then_undone(["hotel", "flight"]);
}

#[test]
fn a_transient_failure_is_tried_again_with_longer_pauses_until_the_policy_ends() {
    booked()
        .succeeds("flight", "F1")
        .fails("hotel", StepError::transient("busy"))
        .then_waits(Some(SECOND))
        .passes(SECOND)
        .then_runs(["hotel"])
        .fails("hotel", StepError::transient("busy"))
        .then_waits(Some(2 * SECOND))
        .passes(2 * SECOND)
        .fails("hotel", StepError::transient("busy"))
        .then_undoes("flight");
    booked()
        .succeeds("flight", "F1")
        .fails("hotel", StepError::transient("busy").retry_after(30 * SECOND))
        .passes(29 * SECOND)
        .then_runs([])
        .passes(SECOND)
        .then_runs(["hotel"]);
}

#[test]
fn what_is_not_known_is_asked_before_anything_else() {
    let unknown = || StepError::unknown("no answer");
    let trip = || booked().succeeds("hotel", 3).fails("flight", unknown()).passes(SECOND);
    trip()
        .then_asks("flight")
        .answers("flight", Found::Happened("F7"))
        .then_runs([])
        .cancelled("no")
        .then_undoes("flight");
    trip().answers::<String>("flight", Found::Never).passes(2 * SECOND).then_runs(["flight"]);
    // Undoing waits for it, too.
    let cancelled = || trip().cancelled("no").then_asks("flight");
    cancelled().answers("flight", Found::Happened("F7")).then_undoes("flight");
    cancelled().answers::<String>("flight", Found::Never).then_undoes("hotel").undone("hotel").then_compensated();
    let silent = cancelled().does_not_answer("flight", StepError::transient("down"));
    silent.then_undone([]).passes(2 * SECOND).then_asks("flight");
    // Whoever cannot be asked says nothing of the step; but for one who says that it was refused.
    let silent = cancelled().does_not_answer("flight", StepError::business("who are you?"));
    silent.then_undone([]).passes(2 * SECOND).then_asks("flight");
    trip().fails("flight", StepError::refused("sold out")).then_undoes("hotel");
}

#[test]
fn nothing_is_repeated_under_a_key_that_does_not_live_any_more() {
    let unknown = || StepError::unknown("no answer");
    at_ticket()
        .fails("ticket", unknown())
        .passes(20 * SECOND)
        .then_runs(["ticket"])
        .fails("ticket", unknown())
        .then_stuck("ticket")
        .succeeds("ticket", ())
        .then_completed();
    // A later no that is certain is a no.
    let trip = at_ticket().fails("ticket", unknown()).passes(20 * SECOND);
    trip.fails("ticket", StepError::business("sold out")).then_undoes("payment");
}

#[test]
fn an_attempt_that_nothing_is_known_of_stays_unknown_after_one_that_did_not_get_through() {
    let trip = booked().succeeds("hotel", 3).fails("flight", StepError::unknown("no answer")).passes(SECOND);
    trip.does_not_answer("flight", StepError::transient("down")).passes(2 * SECOND).then_asks("flight");
    let trip = at_ticket().fails("ticket", StepError::unknown("no answer")).passes(20 * SECOND);
    trip.fails("ticket", StepError::transient("down")).then_stuck("ticket");
}

#[test]
fn a_success_that_comes_late_is_undone() {
    // After its time.
    let late = booked().succeeds("hotel", 3).passes(MINUTE);
    late.then_runs(["flight"]).succeeds("flight", "F1").then_undoes("flight").undone("flight").then_undoes("hotel");
    // After all else is undone.
    let over = booked().succeeds("hotel", 3).passes(MINUTE).fails("flight", StepError::transient("down"));
    over.undone("hotel")
        .then_compensated()
        .succeeds("flight", "F1")
        .then_undoes("flight")
        .undone("flight")
        .then_compensated();
    // A second time, it says nothing new.
    let trip = booked().succeeds("hotel", 3);
    let before = trip.history().len();
    assert_eq!(trip.succeeds("hotel", 3).history().len(), before);
}

#[test]
fn an_event_that_comes_early_is_kept_for_its_step() {
    paid(booked(), 500).succeeds("hotel", 3).succeeds("flight", "F1").then_skipped("upgrade");
    let trip = booked().succeeds("hotel", 3).succeeds("flight", "F1");
    paid(trip, 500).then_waits(Some(MINUTE));
}

#[test]
fn an_event_that_does_not_come_in_time_fails_its_step_and_is_undone_if_it_comes_late() {
    let late = || booked().succeeds("hotel", 3).succeeds("flight", "F1").passes(10 * MINUTE).then_undoes("flight");
    late().undone("flight").undone("hotel").then_compensated();
    paid(late(), 500).undone("flight").then_undoes("payment").undone("payment").undone("hotel").then_compensated();
    let over = late().undone("flight").undone("hotel").then_compensated();
    let over = paid(over, 500).then_undoes("payment").undone("payment").then_compensated();
    // A second one changes nothing.
    paid(over, 500).then_compensated().then_undone(["flight", "hotel", "payment"]);
    // One that came before its step had begun, too.
    let early = paid(booked(), 500).succeeds("hotel", 3).fails("flight", StepError::business("full"));
    early.then_undoes("payment").undone("payment").undone("hotel").then_compensated();
}

#[test]
fn an_event_may_say_that_what_was_waited_for_will_not_come() {
    let declined = || [recorded("trip-1", TripEvent::Declined { reason: "no cover".into() })];
    let trip = booked().succeeds("hotel", 3).succeeds("flight", "F1").when(declined());
    let trip = trip.then_undoes("flight").undone("flight").undone("hotel").then_compensated();
    let reason = trip.history().iter().find_map(|event| match event {
        SagaEvent::SagaCompensated { reason } => Some(reason.as_str()),
        _ => None,
    });
    assert_eq!(reason, Some("payment: no cover"));
    // One that comes early is kept for its step, too; of several, the last one counts.
    booked()
        .when(declined())
        .then_runs(["hotel", "flight"])
        .succeeds("flight", "F1")
        .succeeds("hotel", 3)
        .then_undoes("hotel");
    paid(booked().when(declined()), 500).succeeds("hotel", 3).succeeds("flight", "F1").then_skipped("upgrade");
}

#[test]
fn somebody_who_looked_says_that_a_step_did_not_happen() {
    let no = "they have no such ticket";
    let unknown = || StepError::unknown("no answer");
    let trip =
        || at_ticket().fails("ticket", unknown()).passes(20 * SECOND).fails("ticket", unknown()).then_stuck("ticket");
    let stuck = trip();
    let key = stuck.state().key("ticket");
    let Phase::Stuck { reason, .. } = &stuck.state().phase else { panic!() };
    assert!(reason.contains(&format!("Look for the key {key} where it would have happened")), "{reason}");
    // It has its time anew, and another key: what might still be on its way is of the old one.
    let again = stuck.passes(100 * MINUTE).denied("ticket", no).then_runs(["ticket"]);
    assert_ne!(again.state().key("ticket"), key);
    again.fails("ticket", unknown()).passes(20 * SECOND).then_runs(["ticket"]).succeeds("ticket", ()).then_completed();

    // Of one that undoes, it is not tried again.
    trip().passes(20 * SECOND).cancelled("no").then_stuck("ticket").denied("ticket", no).then_undoes("payment");
    let refused = |trip: &GivenSaga<Trip>, is_run: bool| {
        let steps = Steps::<Trip>::of_saga();
        let input = Input::Denied { step: "ticket".into(), reason: no.into(), is_run };
        decide(&steps.plan, trip.state(), input, DateTime::UNIX_EPOCH).unwrap_err()
    };
    assert_eq!(refused(&at_ticket(), false), "it is at ticket: it is not in doubt whether step \"ticket\" happened");
    // Somebody may be about to try it again, under the key that would be dead.
    let open = refused(&at_ticket().fails("ticket", unknown()), false);
    assert_eq!(open, "it is at ticket: it is found out, or tried again, by itself. Say so if it is stuck");
    let run = refused(&trip(), true);
    assert!(run.starts_with("it is stuck at ticket: an attempt may be under way. Say so once nobody runs it"), "{run}");
}

/// One attempt, of which nothing may be known.
struct Once;

impl Saga for Once {
    const NAME: &'static str = "once";
    type Event = TripEvent;
    type Input = ();

    fn start(event: &Recorded<TripEvent>) -> Option<(Id, ())> {
        Trip::start(event).map(|(id, _)| (id, ()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps.step("letter", |_| done(())).retry(RetryPolicy::NEVER)
    }
}

#[test]
fn what_cannot_be_repeated_is_not_retried_but_completed_or_denied() {
    let once = || given_saga::<Once>([recorded("trip-1", TripEvent::Booked { nights: 3 })]);
    let stuck = || once().fails("letter", StepError::unknown("no answer")).then_stuck("letter");
    let refused = |trip: &State, steps: &Plan| {
        decide(steps, trip, Input::Retry { reason: "again".into() }, "2027-01-01T00:00:00Z".parse().unwrap())
            .unwrap_err()
    };
    let said = refused(stuck().state(), &Steps::<Once>::of_saga().plan);
    assert!(
        said.contains("it is not known whether letter happened, and it cannot be repeated under its key"),
        "{said}"
    );
    stuck().denied("letter", "it was never sent").then_runs(["letter"]).succeeds("letter", ()).then_completed();
    stuck().completed("letter", (), "it was").then_completed();
    // Of which it is not said that it is to be retried.
    let last = once()
        .fails("letter", StepError { is_final: true, ..StepError::unknown("what it was begun with cannot be read") });
    let Phase::Stuck { reason, .. } = &last.state().phase else { panic!() };
    assert!(reason.starts_with("what it was begun with cannot be read. Look for the key"), "{reason}");
    // A key that does not live any more.
    let unknown = || StepError::unknown("no answer");
    let lapsed = at_ticket().fails("ticket", unknown()).passes(20 * SECOND).fails("ticket", unknown()).passes(MINUTE);
    refused(lapsed.state(), &Steps::<Trip>::of_saga().plan);
}

#[test]
fn what_is_not_seen_is_repeated_under_its_key_and_never_counts_as_undone() {
    let trip = || booked().succeeds("hotel", 3).fails("flight", StepError::unknown("no answer")).passes(SECOND);
    let unseen = || trip().then_asks("flight").answers::<String>("flight", Found::NotSeen).passes(2 * SECOND);
    let key = trip().state().key("flight");
    let again = unseen().then_runs(["flight"]);
    assert_eq!(again.state().key("flight"), key);
    again.fails("flight", StepError::unknown("no answer")).passes(4 * SECOND).then_asks("flight");
    // Once it is called off, it is not repeated, and nobody who has not seen it can say that it will not come.
    let undoing = unseen().cancelled("no").then_asks("flight").answers::<String>("flight", Found::NotSeen);
    let undoing = undoing.then_undone([]).passes(4 * SECOND).then_asks("flight");
    undoing.answers::<String>("flight", Found::Never).then_undoes("hotel");
}

#[test]
fn an_attempt_that_may_be_under_way_is_not_given_up_when_the_rest_is_undone() {
    // The second one begins without a word.
    let second = || booked().succeeds("flight", "F1").fails("hotel", StepError::transient("busy")).passes(SECOND);
    let called_off = || second().then_runs(["hotel"]).cancelled("no").then_undone([]);
    called_off()
        .fails("hotel", StepError::unknown("no answer"))
        .passes(2 * SECOND)
        .then_runs(["hotel"])
        .then_undone([]);
    called_off().succeeds("hotel", 3).then_undoes("hotel");
    called_off().fails("hotel", StepError::transient("busy")).then_undoes("flight");
    called_off().is_interrupted().then_runs(["hotel"]);
    // Its time ends while it is under way.
    let late = booked().succeeds("hotel", 3).fails("flight", StepError::transient("busy")).passes(MINUTE);
    late.then_undone([]).succeeds("flight", "F1").then_undoes("flight");
    // One that is given up in the moment in which it begins, and of which nothing is known then.
    let raced = booked().succeeds("flight", "F1").fails("hotel", StepError::transient("busy")).cancelled("no");
    let raced = raced.undone("flight").then_compensated().fails("hotel", StepError::unknown("no answer"));
    raced.passes(2 * SECOND).then_runs(["hotel"]).succeeds("hotel", 3).then_undoes("hotel");
    // One that waits for its next attempt is not under way.
    booked()
        .succeeds("flight", "F1")
        .fails("hotel", StepError::transient("busy"))
        .cancelled("no")
        .then_undoes("flight");
}

#[test]
fn what_is_said_of_a_dead_key_says_nothing_of_the_next() {
    let unknown = || StepError::unknown("no answer");
    let trip = booked().succeeds("hotel", 3).fails("flight", unknown()).passes(SECOND);
    let trip = trip.answers::<String>("flight", Found::Never).passes(2 * SECOND).then_runs(["flight"]);
    let (plan, state) = (Steps::<Trip>::of_saga().plan, trip.state().clone());
    let tell = |input| decide(&plan, &state, input, DateTime::UNIX_EPOCH).unwrap();
    let (step, failure) = (String::from("flight"), crate::saga::engine::Failure::from(unknown()));
    for input in [
        Input::Failed { step: step.clone(), key: 0, failure },
        Input::NotDone { step: step.clone(), key: 0 },
        Input::NotSeen { step: step.clone(), key: 0 },
    ] {
        assert_eq!(tell(input).0, []);
    }
    let (_, stuck) = tell(Input::Succeeded { step: step.clone(), key: 0, output: json!("F1") });
    let Phase::Stuck { reason, .. } = &stuck.phase else { panic!("{:?}", stuck.phase) };
    // What becomes of the attempt under the other key does not settle it.
    let both = Input::Succeeded { step, key: 1, output: json!("F2") };
    let (_, both) = decide(&plan, &stuck, both, DateTime::UNIX_EPOCH).unwrap();
    assert!(matches!(both.phase, Phase::Stuck { .. }), "{both:?}");
    let key = state.nth_key("flight", 0);
    assert!(reason.starts_with(&format!("flight has happened under the key {key}, of which was said")), "{reason}");
}

#[test]
fn what_a_build_cannot_read_undoes_nothing() {
    let trip = at_ticket();
    let facts = crate::Facts::<Trip>::of(trip.state()).unwrap();
    assert_eq!(facts.output_if_done::<i64>("paiment"), Ok(None));
    let error = facts.output::<i64>("paiment").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the output of step paiment cannot be read by this build: there is none: the step is not done, or has another name"
    );
    let stuck = trip.fails("ticket", error.clone()).then_stuck("ticket").then_undone([]);
    stuck.retried("it is spelled right").then_runs(["ticket"]);
    let undoing = booked().succeeds("flight", "F1").succeeds("hotel", 3).cancelled("no");
    undoing.undo_fails("hotel", error).then_stuck("hotel").retried("it is spelled right").then_undoes("hotel");
}

#[test]
#[should_panic = "step flight does not come to 7: invalid type: integer `7`, expected a string"]
fn a_step_comes_to_what_its_type_says() {
    booked().succeeds("flight", 7);
}

#[test]
fn an_event_calls_off_what_is_under_way() {
    booked()
        .when([recorded("trip-1", TripEvent::CalledOff)])
        .then_runs(["hotel", "flight"])
        .succeeds("hotel", 3)
        .then_undone([])
        .fails("flight", StepError::transient("down"))
        .then_undoes("hotel")
        .undone("hotel")
        .then_compensated();
}

#[test]
fn an_undo_that_fails_for_good_is_stuck_until_an_operator_helps() {
    let stuck = || {
        let trip = booked().succeeds("flight", "F1").succeeds("hotel", 3).cancelled("no").undone("hotel");
        let trip = trip.undo_fails("flight", StepError::transient("down")).then_waits(Some(SECOND)).passes(SECOND);
        trip.then_undoes("flight")
            .undo_fails("flight", StepError::transient("down"))
            .then_stuck("flight")
            .then_waits(None)
    };
    stuck().retried("it is up again").then_undoes("flight").undone("flight").then_compensated();
    stuck().skipped("flight", "undone by hand").then_compensated();
    stuck().resolved(Outcome::Completed, "the guest travels").then_resolved(Outcome::Completed);
}

#[test]
fn what_was_under_way_when_its_process_ended_may_have_happened() {
    let trip = booked().succeeds("hotel", 3).is_interrupted();
    trip.then_asks("flight").answers::<String>("flight", Found::Never).passes(SECOND).then_runs(["flight"]);
    let trip = booked().succeeds("flight", "F1").is_interrupted().then_runs(["hotel"]);
    trip.is_interrupted().is_interrupted().then_stuck("hotel").then_waits(None);
}

#[test]
fn an_operator_is_told_where_it_is_when_what_was_asked_does_not_fit() {
    let mut state = State::default();
    let steps = Steps::<Trip>::of_saga();
    let tell = |state: &State, input| decide(&steps.plan, state, input, DateTime::UNIX_EPOCH);
    let reason = String::from("because");
    let refused = |state: &State, input| tell(state, input).unwrap_err();
    let early = tell(&state, Input::Cancel { reason: reason.clone() }).unwrap().1;
    assert_eq!(refused(&early, Input::Cancel { reason: reason.clone() }), "it has not started: it cannot be cancelled");
    (_, state) = tell(&state, Input::Start { definition: 1, input: json!(3) }).unwrap();
    let skip = Input::Skip { step: "ticket".into(), reason: reason.clone(), is_run: false };
    assert_eq!(refused(&state, skip), "it is at hotel, flight, not at step \"ticket\"");
    assert_eq!(
        refused(&state, Input::Retry { reason: reason.clone() }),
        "it is at hotel, flight: there is nothing to try again"
    );
    (_, state) = tell(&state, Input::Resolve { outcome: Outcome::Completed, reason: reason.clone() }).unwrap();
    let again = Input::Resolve { outcome: Outcome::Completed, reason };
    assert_eq!(refused(&state, again), "it has been resolved: there is nothing to resolve");
}

#[test]
fn a_key_that_lapsed_while_nobody_was_called_is_not_used_again_whatever_else_is_asked_for() {
    let unknown = || StepError::unknown("no answer");
    // The circuit was open, or the saga paused, for longer than the key lives.
    let lapsed = || at_ticket().fails("ticket", unknown()).passes(MINUTE).then_stuck("ticket").then_runs([]);
    lapsed().cancelled("no").then_stuck("ticket").then_runs([]);
    lapsed().cancelled("no").completed("ticket", (), "it is in the books").then_undoes("payment");
    lapsed().completed("ticket", (), "it is in the books").then_completed();
    lapsed().cancelled("no").skipped("ticket", "nothing was sold").then_undoes("payment");
    lapsed()
        .denied("ticket", "they have it not")
        .then_runs(["ticket"])
        .fails("ticket", unknown())
        .passes(MINUTE)
        .then_stuck("ticket");
}

#[test]
fn an_undo_is_not_repeated_under_a_key_that_does_not_live_any_more() {
    let undoing = at_ticket().fails("ticket", StepError::business("sold out")).then_undoes("payment");
    let lapsed = undoing.undo_fails("payment", StepError::unknown("no answer")).passes(MINUTE).then_stuck("payment");
    lapsed.skipped("payment", "they gave it back").then_undoes("flight");
    // Who has it go on for something else has not looked for its key.
    let undoing = at_ticket().fails("ticket", StepError::business("sold out"));
    let undoing = undoing.undo_fails("payment", StepError::unknown("no answer"));
    let plan = Steps::<Trip>::of_saga().plan;
    let later = undoing.state().step("payment").unwrap().key_since + 100 * MINUTE;
    let tell = |state: &State, input| decide(&plan, state, input, later).unwrap().1;
    let broken = Input::Broken { step: None, reason: "it cannot be read".into(), interrupted: true };
    let back = tell(&tell(undoing.state(), broken), Input::Retry { reason: "it can".into() });
    assert!(matches!(&back.phase, Phase::Stuck { step: Some(step), .. } if step == "payment"), "{back:?}");
    let again = tell(&back, Input::Retry { reason: "they did not".into() });
    assert_eq!(again.phase, Phase::Undoing);
    // What certainly did not happen is tried for as long as it takes.
    let undoing = at_ticket().fails("ticket", StepError::business("sold out"));
    undoing.undo_fails("payment", StepError::transient("down")).passes(MINUTE).then_undoes("payment");
}

#[test]
fn what_is_called_off_before_it_has_begun_is_over_when_it_begins() {
    given_saga::<Trip>([])
        .when([recorded("trip-1", TripEvent::CalledOff), recorded("trip-1", TripEvent::Booked { nights: 3 })])
        .then_compensated()
        .then_undone([]);
}

#[test]
fn what_is_resolved_stays_so_whatever_still_comes() {
    let resolved = || booked().resolved(Outcome::Completed, "the guest travels");
    resolved().fails("hotel", StepError::unknown("no answer")).then_resolved(Outcome::Completed);
    resolved().is_interrupted().then_resolved(Outcome::Completed);
    resolved().succeeds("hotel", 3).then_resolved(Outcome::Completed).passes(MINUTE).then_resolved(Outcome::Completed);
}

#[test]
fn steps_that_changed_their_order_hold_nothing_up() {
    let now = DateTime::UNIX_EPOCH;
    let tell = |plan: &Plan, state: &State, input| decide(plan, state, input, now).unwrap().1;
    let done = |step: &str| Input::Succeeded { key: 0, step: step.into(), output: json!(null) };
    let plan = without(&["hotel", "flight", "payment", "pause"]);
    let mut other = without(&["hotel", "flight", "payment", "pause"]);
    let state = tell(&plan, &State::default(), Input::Start { definition: 1, input: json!(3) });
    assert_eq!(state.current().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["ticket"]);
    other.stages.rotate_left(1);
    assert_eq!(tell(&other, &state, done("ticket")).phase, Phase::Completed);

    // What is new before where an instance is, is left out, none of it is begun out of turn, and that is recorded.
    let (events, on) = decide(&without(&["flight"]), &state, done("ticket"), now).unwrap();
    let left_out = events.iter().filter_map(|event| match event {
        SagaEvent::StepSkipped { step, reason } => Some((step.as_str(), reason.as_str())),
        _ => None,
    });
    let why = "a newer build put it before a step that had begun";
    assert_eq!(left_out.collect::<Vec<_>>(), [("hotel", why), ("payment", why), ("pause", why)]);
    assert_eq!(on.phase, Phase::Completed);

    // What it had before it, and comes before it now, is not left out.
    let mut moved = without(&["flight", "payment", "pause"]);
    let state = tell(&moved, &State::default(), Input::Start { definition: 1, input: json!(3) });
    moved.stages.rotate_right(1);
    let on = tell(&moved, &state, Input::Succeeded { key: 0, step: "hotel".into(), output: json!(3) });
    let Phase::Stuck { step, reason, .. } = &on.phase else { panic!("{on:?}") };
    assert_eq!(step.as_deref(), Some("ticket"));
    assert!(reason.contains("step ticket was moved, in version 1"), "{reason}");
    let off = tell(&moved, &on, Input::Cancel { reason: "no".into() });
    assert_eq!(off.phase, Phase::Undoing);
    assert_eq!(off.current().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["hotel"]);
    let skip = Input::Skip { step: "ticket".into(), reason: "not needed".into(), is_run: false };
    assert_eq!(tell(&moved, &on, skip).phase, Phase::Completed);
}

#[test]
fn what_cannot_be_read_is_stuck_and_not_lost() {
    let steps = Steps::<Trip>::of_saga();
    let now = DateTime::UNIX_EPOCH;
    let start = Input::Start { definition: 1, input: json!({ "nights": 3 }) };
    let (_, mut state) = decide(&steps.plan, &State::default(), start, now).unwrap();
    for (step, output) in [("hotel", json!(3)), ("flight", json!("F1"))] {
        let told = Input::Succeeded { key: 0, step: step.into(), output };
        (_, state) = decide(&steps.plan, &state, told, now).unwrap();
    }
    let outputs = vec![("payment".to_owned(), Ok(json!(1)))];
    let told = Input::Event { position: crate::Position::new(9), outputs };
    (_, state) = decide(&steps.plan, &state, told, now).unwrap();

    let Phase::Stuck { step, reason, .. } = &state.phase else { panic!("{state:?}") };
    assert_eq!(step.as_deref(), Some("upgrade"));
    assert!(reason.starts_with("what trip was started with cannot be read by this build: "), "{reason}");
}

/// The steps of `Trip` without some.
fn without(gone: &[&str]) -> Plan {
    let mut plan = Steps::<Trip>::of_saga().plan;
    plan.stages.iter_mut().for_each(|stage| stage.retain(|step| !gone.contains(&step.name)));
    plan.stages.retain(|stage| !stage.is_empty());
    plan
}

#[test]
fn steps_are_found_by_name_when_the_code_has_changed() {
    let now = DateTime::UNIX_EPOCH;
    let tell = |plan: &Plan, state: &State, input| decide(plan, state, input, now).unwrap().1;
    let plan = without(&[]);
    let state = tell(&plan, &State::default(), Input::Start { definition: 1, input: json!(3) });
    let state = tell(&plan, &state, Input::Succeeded { key: 0, step: "hotel".into(), output: json!(3) });
    let to_do = |plan: &Plan, state: &State| -> Vec<(&str, What)> {
        effects(plan, state, now).iter().map(|effect| (effect.step, effect.what)).collect()
    };

    // A step that is done may go, and comes to mind when it is to be undone.
    let less = without(&["hotel"]);
    let on = tell(&less, &state, Input::Succeeded { key: 0, step: "flight".into(), output: json!("F1") });
    assert_eq!(on.current().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["payment"]);
    let back = tell(&less, &on, Input::Cancel { reason: "no".into() });
    let back = tell(&less, &back, Input::Undone { step: "flight".into() });
    assert!(matches!(&back.phase, Phase::Stuck { step: Some(step), undoing: true, .. } if step == "hotel"), "{back:?}");
    let again = tell(&plan, &back, Input::Retry { reason: "it is back".into() });
    assert_eq!(to_do(&plan, &again), [("hotel", What::Undo)]);
    let skipped = tell(&less, &back, Input::Skip { step: "hotel".into(), reason: "by hand".into(), is_run: false });
    assert_eq!(skipped.phase, Phase::Compensated);

    // The step that it is at may not.
    let lost = without(&["flight"]);
    let stuck = tell(&lost, &state, Input::Tick);
    assert!(
        matches!(&stuck.phase, Phase::Stuck { step: Some(step), undoing: false, .. } if step == "flight"),
        "{stuck:?}"
    );
    let again = tell(&lost, &stuck, Input::Retry { reason: "again".into() });
    assert!(matches!(&again.phase, Phase::Stuck { .. }), "{again:?}");
    let skipped = tell(&lost, &stuck, Input::Skip { step: "flight".into(), reason: "they walk".into(), is_run: false });
    assert_eq!(skipped.current().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["payment"]);
    let back = tell(&plan, &stuck, Input::Retry { reason: "it is back".into() });
    assert_eq!(to_do(&plan, &back), [("flight", What::Run)]);

    // That an attempt may have been under way, a build tells that does not have the step.
    let killed = tell(&lost, &state, Input::Interrupted);
    assert!(matches!(&killed.phase, Phase::Stuck { step: Some(step), .. } if step == "flight"), "{killed:?}");
    let back = tell(&plan, &killed, Input::Retry { reason: "it is back".into() });
    assert_eq!(to_do(&plan, &back), [("flight", What::Ask)]);
    let back = tell(&plan, &killed, Input::Cancel { reason: "no".into() });
    assert_eq!(to_do(&plan, &back), [("flight", What::Ask)]);

    // Called off before its next attempt, or over its time, it is told as soon as such a build has it.
    let busy = Input::Failed { key: 0, step: "flight".into(), failure: StepError::transient("busy").into() };
    let off = tell(&plan, &tell(&plan, &state, busy), Input::Cancel { reason: "no".into() });
    assert_eq!((to_do(&lost, &off), wakes_at(&lost, &off, now)), (vec![], Some(now)));
    assert!(matches!(tell(&lost, &off, Input::Tick).phase, Phase::Stuck { undoing: true, .. }));
    assert_eq!(wakes_at(&lost, &state, now), Some(now));
    let late = decide(&lost, &state, Input::Tick, now + 100 * MINUTE).unwrap().1;
    assert!(matches!(late.phase, Phase::Stuck { undoing: false, .. }), "{late:?}");

    // What is done and left out is undone with the rest.
    let gone = without(&["flight", "hotel"]);
    let (flight, done) = (without(&["hotel"]), Input::Succeeded { key: 0, step: "flight".into(), output: json!("F1") });
    let done =
        tell(&gone, &tell(&flight, &state, done), Input::Broken { step: None, reason: "?".into(), interrupted: false });
    let only = |step: &str| Input::Skip { step: step.into(), reason: "not needed".into(), is_run: false };
    let wait = tell(&gone, &done, Input::Retry { reason: "again".into() });
    assert_eq!(wait.current().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["payment"]);
    let no_wait = without(&["flight", "hotel", "payment"]);
    let skipped = tell(&no_wait, &tell(&no_wait, &wait, Input::Tick), only("payment"));
    let stuck = skipped.clone();
    assert!(
        matches!(&stuck.phase, Phase::Stuck { step: Some(step), undoing: false, .. } if step == "flight"),
        "{stuck:?}"
    );
    let on = tell(&no_wait, &stuck, only("flight"));
    let undone = tell(&no_wait, &on, Input::Cancel { reason: "no".into() });
    assert!(
        matches!(&undone.phase, Phase::Stuck { step: Some(step), undoing: true, .. } if step == "flight"),
        "{undone:?}"
    );
    let undone = tell(&no_wait, &undone, only("flight"));
    assert!(
        matches!(&undone.phase, Phase::Stuck { step: Some(step), undoing: true, .. } if step == "hotel"),
        "{undone:?}"
    );

    // A wait that a build has called off which does not have it.
    let off = tell(&no_wait, &wait, Input::Cancel { reason: "no".into() });
    assert!(matches!(&off.phase, Phase::Stuck { undoing: true, step: Some(step), .. } if step == "payment"), "{off:?}");
    let back = tell(&plan, &off, Input::Retry { reason: "it is back".into() });
    assert_eq!(to_do(&plan, &back), [("flight", What::Undo)]);
}

#[test]
fn what_is_called_off_before_its_next_attempt_is_given_up_by_who_knows_whether_that_has_begun() {
    let plan = without(&[]);
    let tell = |state: &State, input, at| decide(&plan, state, input, DateTime::UNIX_EPOCH + at).unwrap().1;
    let busy = || Input::Failed { key: 0, step: "flight".into(), failure: StepError::transient("busy").into() };
    let state = tell(&State::default(), Input::Start { definition: 1, input: json!(3) }, Duration::ZERO);
    let state = tell(&state, Input::Succeeded { key: 0, step: "hotel".into(), output: json!(3) }, Duration::ZERO);
    let state = tell(&state, busy(), Duration::ZERO);
    // By a clock that is a little behind it is not due.
    let off = tell(&state, Input::Cancel { reason: "no".into() }, Duration::ZERO);
    let to_do = |state: &State, at| -> Vec<(&str, What)> {
        effects(&plan, state, DateTime::UNIX_EPOCH + at).iter().map(|effect| (effect.step, effect.what)).collect()
    };
    assert_eq!(to_do(&off, Duration::ZERO), [("flight", What::Run)]);
    let given_up = tell(&off, Input::NeverTried { step: "flight".into() }, Duration::ZERO);
    assert_eq!(to_do(&given_up, Duration::ZERO), [("hotel", What::Undo)]);
    // Whoever had begun it is killed.
    let killed = tell(&off, Input::Interrupted, 5 * SECOND);
    assert_eq!(to_do(&killed, 5 * SECOND), [("flight", What::Ask)]);
    booked().succeeds("hotel", 3).fails("flight", StepError::transient("busy")).cancelled("no").then_undoes("hotel");
}

#[test]
fn what_a_build_could_not_read_says_that_attempts_may_have_been_under_way() {
    let broken = |interrupted| Input::Broken { step: None, reason: "it cannot be read".into(), interrupted };
    let plan = without(&[]);
    let tell = |state: &State, input| decide(&plan, state, input, DateTime::UNIX_EPOCH).unwrap().1;
    let to_do = |state: &State| -> Vec<(&str, What)> {
        effects(&plan, state, DateTime::UNIX_EPOCH).iter().map(|effect| (effect.step, effect.what)).collect()
    };
    let start = tell(&State::default(), Input::Start { definition: 1, input: json!(3) });
    let again = Input::Retry { reason: "it can be read".into() };
    assert_eq!(
        to_do(&tell(&tell(&start, broken(false)), again.clone())),
        [("hotel", What::Run), ("flight", What::Run)]
    );
    let stuck = tell(&start, broken(true));
    // The hotel is not asked: it is repeated, under its key.
    let back = tell(&stuck, again.clone());
    assert_eq!(to_do(&back), [("hotel", What::Run), ("flight", What::Ask)]);
    assert!(back.steps.iter().all(|step| step.unknown == 1 && !step.interrupted), "{back:?}");
    // An undo, too.
    let undoing = tell(
        &tell(&back, Input::Succeeded { key: 0, step: "hotel".into(), output: json!(3) }),
        Input::Cancel { reason: "no".into() },
    );
    let undoing = tell(&undoing, Input::NotDone { key: 0, step: "flight".into() });
    assert_eq!(to_do(&undoing), [("hotel", What::Undo)]);
    let back = tell(&tell(&undoing, broken(true)), again);
    assert_eq!(back.step("hotel").map(|step| (step.attempts, step.unknown)), Some((1, 1)));
}

#[test]
fn what_somebody_has_to_see_to_stays_told_whatever_comes() {
    let never = |trip: GivenSaga<Trip>| trip.answers::<String>("flight", Found::Never);
    let dead = || never(booked().succeeds("hotel", 3).fails("flight", StepError::unknown("?")));
    let plan = without(&[]);
    let tell = |state: &State, input| decide(&plan, state, input, DateTime::UNIX_EPOCH).unwrap().1;
    let late = || Input::Succeeded { key: 0, step: "flight".into(), output: json!("F0") };
    let is_told = |state: &State, undoes: bool| {
        let told = matches!(&state.phase, Phase::Stuck { undoing, reason, .. } if *undoing == undoes && reason.contains("\"F0\""));
        assert!(told, "{state:?}");
    };
    let stuck = tell(dead().state(), late());
    is_told(&stuck, false);
    // Its time is over, it is called off, an attempt under the other key ends, or its process.
    let off = tell(&stuck, Input::Cancel { reason: "no".into() });
    is_told(&off, true);
    let off = tell(&off, Input::NeverTried { step: "flight".into() });
    let failure = || StepError::business("no seats").into();
    is_told(&tell(&stuck, Input::Failed { key: 1, step: "flight".into(), failure: failure() }), false);
    is_told(&tell(&stuck, Input::Succeeded { key: 1, step: "flight".into(), output: json!("F1") }), false);
    let mut silent = stuck.clone();
    for _ in 0..12 {
        let failure = StepError::unknown("?").into();
        silent = tell(&silent, Input::Failed { key: 1, step: "flight".into(), failure });
        is_told(&silent, false);
    }
    is_told(&tell(&silent, Input::Denied { step: "flight".into(), reason: "no".into(), is_run: false }), false);
    let unreadable = tell(&silent, Input::Broken { step: None, reason: "a dream".into(), interrupted: false });
    is_told(&unreadable, false);
    let Phase::Stuck { reason, .. } = &unreadable.phase else { panic!() };
    assert!(reason.contains("Look for the key") && reason.contains("a dream"), "{reason}");
    // Until somebody has.
    let seen = Input::Retry { reason: "it is given back".into() };
    assert_eq!(tell(&stuck, seen.clone()).phase, Phase::Forward);
    let undone = tell(&off, seen);
    assert_eq!(undone.phase, Phase::Undoing);

    // What was done to its end is not undone for that.
    let ended = paid(dead().succeeds("flight", "F1"), 500).passes(MINUTE).succeeds("ticket", ()).then_completed();
    let stuck = tell(ended.state(), late());
    is_told(&stuck, false);
    let off = decide(&plan, &stuck, Input::Cancel { reason: "no".into() }, DateTime::UNIX_EPOCH);
    assert_eq!(off.unwrap_err(), "it is stuck: it cannot be cancelled");
    assert_eq!(tell(&stuck, Input::Retry { reason: "it is given back".into() }).phase, Phase::Completed);
}

#[test]
fn what_has_ended_and_what_is_stuck_gives_nothing_up() {
    let given_up = |state: &State| {
        let input = Input::NeverTried { step: "hotel".into() };
        decide(&without(&[]), state, input, DateTime::UNIX_EPOCH + 1_000 * MINUTE).unwrap().0
    };
    // What a build could not read may have opened again what had ended.
    let unreadable = Input::Broken { step: None, reason: "a dream".into(), interrupted: true };
    let broken =
        |state: &State| decide(&without(&[]), state, unreadable.clone(), DateTime::UNIX_EPOCH).unwrap().1.phase;
    let undone =
        booked().cancelled("no").fails("hotel", StepError::business("no")).fails("flight", StepError::business("no"));
    assert!(matches!(broken(undone.then_compensated().state()), Phase::Stuck { undoing: true, .. }));
    let resolved = booked().resolved(Outcome::Compensated, "by hand");
    assert_eq!(broken(resolved.state()), Phase::Resolved(Outcome::Compensated));
    assert!(given_up(booked().resolved(Outcome::Compensated, "by hand").state()).is_empty());
    assert!(
        given_up(
            booked()
                .fails("flight", StepError { is_final: true, ..StepError::unknown("?") })
                .then_stuck("flight")
                .state()
        )
        .is_empty()
    );
}

/// A letter of which the post remembers a minute.
struct Posted;

impl Saga for Posted {
    const NAME: &'static str = "posted";
    type Event = TripEvent;
    type Input = ();

    fn start(event: &Recorded<TripEvent>) -> Option<(Id, ())> {
        Trip::start(event).map(|(id, _)| (id, ()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        let post = Target { key_life: Some(MINUTE), ..Target::new("post") };
        let letter = steps.step("letter", |_| done(())).ask(|_| done(Found::NotSeen)).calls(post).timeout(9 * MINUTE);
        letter.end()
    }
}

#[test]
fn a_new_key_lives_from_when_it_is_new_and_a_retry_gives_the_same_time_again() {
    let unknown = || StepError::unknown("?");
    let booked = given_saga::<Posted>([recorded("trip-1", TripEvent::Booked { nights: 3 })]);
    let again = booked.fails("letter", unknown()).passes(2 * MINUTE).answers::<()>("letter", Found::Never);
    let again = again.passes(2 * SECOND).fails("letter", unknown()).answers::<()>("letter", Found::NotSeen);
    let lapsed = again.passes(SECOND).then_runs(["letter"]).passes(2 * MINUTE).then_stuck("letter");
    let deadline = |trip: &GivenSaga<Posted>| trip.state().step("letter").unwrap().deadline_at;
    let first = lapsed.passes(30 * MINUTE).retried("?");
    let at = deadline(&first);
    assert_eq!(deadline(&first.passes(30 * MINUTE).retried("?")) - at, chrono::TimeDelta::minutes(30));
}

#[test]
fn lists_of_steps_are_set_apart_by_commas() {
    struct Comma;
    impl Saga for Comma {
        const NAME: &'static str = "comma";
        type Event = TripEvent;
        type Input = ();
        fn start(_: &Recorded<TripEvent>) -> Option<(Id, ())> {
            None
        }
        fn steps(steps: Steps<Self>) -> Steps<Self> {
            steps.step("a, b", |_| done(())).end()
        }
    }
    let refusal = Steps::<Comma>::of_saga().refusal();
    assert_eq!(refusal.as_deref(), Some("a step of comma is called \"a, b\": lists of steps are set apart by commas"));
}

#[test]
fn delays_double_up_to_the_longest_and_are_shortened_by_a_quarter_at_most() {
    let policy = RetryPolicy { attempts: 5, first_delay: SECOND, longest_delay: 3 * SECOND };
    let delays: Vec<_> = (1..=5).map(|attempt| policy.delay(attempt, 0)).collect();
    assert_eq!(delays, [Some(SECOND), Some(2 * SECOND), Some(3 * SECOND), Some(3 * SECOND), None]);
    for seed in 0..1_000 {
        let delay = policy.delay(1, seed).unwrap();
        assert!(delay <= SECOND && delay >= SECOND * 3 / 4, "{delay:?}");
    }
}

#[test]
fn a_refusal_of_an_aggregate_is_a_business_failure_and_a_full_queue_is_not() {
    let of = |error: crate::ExecuteError<Infallible>| StepError::from(error).kind();
    assert_eq!(of(crate::ExecuteError::Store(crate::StoreError::Closed)), FailureKind::Transient);
    let invalid = crate::InvalidInput::Other("no".into());
    assert_eq!(of(crate::ExecuteError::Store(invalid.into())), FailureKind::Business);
}
