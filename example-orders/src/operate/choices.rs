//! What an operator can do about an instance of a saga where it stands.

use std::collections::BTreeMap;

use annals::SagaEvent;

use crate::{cli::Instance, typed::quoted};

/// How it goes with a step that an instance is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    UnderWay,
    /// It has failed, and has a next attempt.
    Waits,
    /// It may have happened.
    InDoubt,
    Undoing,
    UndoFailed,
}

/// Where an instance stands, as far as it matters for what can be done.
#[derive(Debug, Default)]
struct Place<'a> {
    is_open: bool,
    is_undone: bool,
    is_undoing: bool,
    /// At which step it is stuck, if it is at one.
    stuck: Option<Option<&'a str>>,
    /// Whether it stays stuck whatever becomes of its steps.
    is_unsettled: bool,
    at: BTreeMap<&'a str, Step>,
}

/// What is accepted of `instance` behind `events`, its whole history, and fits, each with when it does. `paused` says why its saga is
/// paused, if it is.
///
/// That a step is tried again is accepted because each of this shop's can be asked about or repeated under its key.
pub(super) fn choices<'a>(
    instance: &Instance,
    events: impl IntoIterator<Item = &'a SagaEvent>,
    paused: Option<&str>,
) -> Vec<(String, String)> {
    let mut place = Place::default();
    events.into_iter().for_each(|event| place.take(event));
    let Place { is_open, is_undoing, stuck, at, .. } = place;
    if !is_open {
        return vec![];
    }
    let it = format!("{} {}", quoted(&instance.saga), quoted(&instance.id));
    let resume = |why| (format!("sagas resume {}", instance.saga), format!("{} is paused: {why}", instance.saga));
    let mut choices = Vec::from_iter(paused.map(resume));
    let mut add = |what: &str, rest: String, reason: &str, when: String| {
        choices.push((format!("sagas {what} {it}{rest} --reason \"{reason}\""), when));
    };
    let waits = at.values().any(|step| matches!(step, Step::Waits | Step::InDoubt | Step::UndoFailed));
    let in_doubt = at.values().any(|step| *step == Step::InDoubt);
    match (stuck, in_doubt) {
        (Some(_), true) => {
            let when = "once whoever is called answers again: that is asked, or repeated under its key";
            add("retry", String::new(), "the cause is mended", when.into());
        }
        (Some(_), false) => add("retry", String::new(), "the cause is mended", "once the cause is mended".into()),
        (None, _) if waits => add("retry", String::new(), "the cause is mended", "to try again at once".into()),
        (None, _) => {}
    }
    let mut undo_failed = false;
    let steps: Vec<&str> = match stuck {
        Some(step) => step.into_iter().collect(),
        None => at.keys().copied().collect(),
    };
    for name in steps {
        let step = quoted(name);
        match at.get(name) {
            Some(Step::UndoFailed) => {
                undo_failed = true;
                add("skip", format!(" {step}"), "undone by hand", format!("once {name} is undone by hand"));
            }
            Some(Step::InDoubt) if stuck.is_some() => {
                let when = format!("if {name} has happened; JSON is what it came to, null if nothing");
                add("complete", format!(" {step} JSON"), "looked it up: it has happened", when);
                let then = if is_undoing { "" } else { ": it is tried again under a new key" };
                let when = format!("if {name} has not happened, and will not{then}");
                add("not-done", format!(" {step}"), "looked it up: it has not happened", when);
            }
            _ if stuck.is_some() => {
                let when = format!("to go on without {name}, once somebody has seen to it");
                add("skip", format!(" {step}"), "seen to by hand", when);
            }
            _ => {}
        }
    }
    // What is stuck at no step may have all behind it.
    if !is_undoing && stuck != Some(None) {
        add("cancel", String::new(), "called off", "to undo what was done".into());
    }
    if stuck.is_some() && !in_doubt && !undo_failed {
        let (outcome, what) = if is_undoing { ("compensated", "undone") } else { ("completed", "done") };
        let when = format!("once all of it is {what} by hand: nothing is done for it any more");
        add("resolve", format!(" --as {outcome}"), &format!("all {what} by hand"), when);
    }
    choices
}

impl<'a> Place<'a> {
    /// Lets an event happen, as the framework does.
    fn take(&mut self, event: &'a SagaEvent) {
        match event {
            SagaEvent::SagaStarted { .. } => self.is_open = true,
            SagaEvent::StepStarted { step, .. } => self.set(step, Step::UnderWay),
            SagaEvent::StepFailed { step, unknown, next_attempt_at, key_is_dead, .. } => {
                // One that came too late, and may have happened, opens it again.
                self.is_open |= *unknown && self.is_undone;
                match (unknown, next_attempt_at) {
                    (true, _) => self.set(step, Step::InDoubt),
                    (false, Some(_)) => self.set(step, Step::Waits),
                    (false, None) => self.leave(step),
                }
                if *key_is_dead {
                    self.unstick(step);
                }
            }
            SagaEvent::StepTimedOut { step, under_way: false } => {
                self.at.remove(&**step);
            }
            SagaEvent::StepCompleted { step, .. } => {
                self.is_open |= self.is_undone;
                self.leave(step);
            }
            SagaEvent::StepSkipped { step, .. } | SagaEvent::StepUndone { step } => self.leave(step),
            SagaEvent::UndoBegan { abandoned, .. } => {
                self.at.retain(|step, _| !abandoned.iter().any(|it| it == step));
                self.is_undoing = true;
                self.go_on();
            }
            SagaEvent::UndoStarted { step } => self.set(step, Step::Undoing),
            SagaEvent::UndoFailed { step, .. } => self.set(step, Step::UndoFailed),
            SagaEvent::SagaStuck { step, .. } => {
                (self.is_open, self.stuck) = (true, Some(step.as_deref()));
                self.is_unsettled |= step.is_none();
            }
            SagaEvent::SagaRetried { .. } => (self.is_unsettled, self.stuck) = (false, None),
            SagaEvent::SagaCompleted | SagaEvent::SagaResolved { .. } => {
                (self.is_open, self.is_undone) = (false, false)
            }
            SagaEvent::SagaCompensated { .. } => (self.is_open, self.is_undone) = (false, true),
            _ => {}
        }
    }

    fn set(&mut self, step: &'a str, to: Step) {
        self.at.insert(step, to);
    }

    fn leave(&mut self, step: &str) {
        self.at.remove(step);
        self.unstick(step);
    }

    fn unstick(&mut self, step: &str) {
        if self.stuck == Some(Some(step)) {
            self.go_on();
        }
    }

    fn go_on(&mut self) {
        self.stuck = self.is_unsettled.then_some(None);
    }
}

#[cfg(test)]
mod tests {
    use annals::{
        Outcome, StepError,
        testing::{GivenSaga, given_saga, recorded},
    };
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::{
        cli::{Cli, Command, SagaCommand},
        gateway::Charge,
        order::{CustomerId, Line, OrderEvent, Purchase, Sku, StoreId},
        sagas::Fulfilment,
    };

    fn charge() -> Charge {
        Charge { id: "charge-1".into(), order: "1".into(), cents: 598 }
    }

    fn at_pay() -> GivenSaga<Fulfilment> {
        let (product, department) = ("SOURDOUGH BREAD".into(), "BAKERY".into());
        let bread = Line { sku: Sku(1), product, department, quantity: 2, amount_cents: 598, discount_cents: 0 };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let placed = Purchase::new(CustomerId(7), StoreId::ONLINE, now, vec![bread]).unwrap();
        given_saga([recorded("order-1", OrderEvent::OrderPlaced(placed))])
            .succeeds("accept", ())
            .succeeds("reserve", ())
    }

    fn undo_of_pay() -> GivenSaga<Fulfilment> {
        at_pay().succeeds("pay", charge()).fails("ship", StepError::business("no lorry"))
    }

    /// One of which nobody can say whether it was paid.
    fn in_doubt(of: impl Fn(GivenSaga<Fulfilment>) -> GivenSaga<Fulfilment>) -> GivenSaga<Fulfilment> {
        let mut given = of(at_pay().fails("pay", StepError::unknown("no answer")));
        while !matches!(given.history().last(), Some(SagaEvent::SagaStuck { .. })) {
            given = given.does_not_answer("pay", StepError::transient("out of service"));
        }
        given
    }

    fn instance() -> Instance {
        Instance { saga: "fulfilment".into(), id: "1".into() }
    }

    /// A choice as the program takes it.
    fn typed(choice: &str) -> SagaCommand {
        let (words, reason) = choice.split_once(" --reason ").unwrap();
        let words = words.split(' ').map(|word| if word == "JSON" { "null" } else { word });
        let words = ["example-orders"].into_iter().chain(words).chain(["--reason", reason.trim_matches('"')]);
        match Cli::try_parse_from(words).unwrap().command {
            Some(Command::Sagas(command)) => {
                command.check().unwrap();
                command
            }
            other => panic!("{other:?}"),
        }
    }

    /// What is offered of it. The saga itself has accepted each.
    fn offered(given: impl Fn() -> GivenSaga<Fulfilment>) -> Vec<String> {
        let choices = choices(&instance(), given().history(), None);
        let choices: Vec<String> = choices.into_iter().map(|(choice, _)| choice).collect();
        for choice in &choices {
            let given = given();
            match typed(choice) {
                SagaCommand::Retry { .. } => given.retried("x"),
                SagaCommand::Skip { step, .. } => given.skipped(&step, "x"),
                SagaCommand::Complete { step, .. } => given.completed(&step, charge(), "x"),
                SagaCommand::NotDone { step, .. } => given.denied(&step, "x"),
                SagaCommand::Cancel { .. } => given.cancelled("x"),
                SagaCommand::Resolve { outcome, .. } => given.resolved(outcome.into(), "x"),
                other => panic!("{other:?}"),
            };
        }
        let plain =
            |choice: &String| choice.split(" --reason ").next().unwrap_or_default().replace("fulfilment 1", "IT");
        choices.iter().map(plain).collect()
    }

    #[test]
    fn an_undo_that_failed_is_tried_again_or_done_by_hand() {
        let failed = || undo_of_pay().undo_fails("pay", StepError::business("the bank is closed"));
        let waits = || undo_of_pay().undo_fails("pay", StepError::transient("in a moment"));

        assert_eq!(offered(failed), ["sagas retry IT", "sagas skip IT pay"]);
        assert_eq!(offered(waits), ["sagas retry IT", "sagas skip IT pay"]);
        assert!(offered(undo_of_pay).is_empty());
        assert!(offered(|| failed().skipped("pay", "by hand").undone("accept")).is_empty());
    }

    #[test]
    fn what_may_have_happened_is_looked_up() {
        let all = ["sagas retry IT", "sagas complete IT pay JSON", "sagas not-done IT pay", "sagas cancel IT"];

        assert_eq!(offered(|| in_doubt(|given| given)), all);
        assert_eq!(offered(|| in_doubt(|given| given.cancelled("no more"))), all[..3]);
        // It is still found out by itself.
        assert_eq!(offered(|| at_pay().fails("pay", StepError::unknown("no answer"))), [all[0], all[3]]);
        assert_eq!(offered(|| in_doubt(|given| given).denied("pay", "not there")), [all[3]]);
    }

    #[test]
    fn what_runs_is_tried_at_once_or_called_off_and_what_has_ended_is_left_alone() {
        assert_eq!(offered(at_pay), ["sagas cancel IT"]);
        let waits = || at_pay().fails("pay", StepError::transient("in a moment"));
        assert_eq!(offered(waits), ["sagas retry IT", "sagas cancel IT"]);
        assert!(offered(|| at_pay().resolved(Outcome::Compensated, "x").succeeds("pay", charge())).is_empty());
        let declined = || at_pay().fails("pay", StepError::business("declined")).undone("accept");
        assert!(offered(declined).is_empty());
        // What was given up has happened after all.
        let late = || declined().succeeds("pay", charge()).undo_fails("pay", StepError::business("no"));
        assert_eq!(offered(late), ["sagas retry IT", "sagas skip IT pay"]);
    }

    #[test]
    fn what_is_stuck_for_any_other_reason_is_mended_left_out_called_off_or_ended() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let forward = [
            SagaEvent::SagaStarted { definition: 1, input: json!(null), steps: vec![] },
            SagaEvent::StepStarted { step: "ship it".into(), deadline_at: now },
            SagaEvent::SagaStuck { step: Some("ship it".into()), reason: "nobody came".into(), interrupted: false },
        ];
        let undoing = SagaEvent::UndoBegan { step: None, reason: "no".into(), abandoned: vec![] };
        let nowhere = SagaEvent::SagaStuck { step: None, reason: "it has happened twice".into(), interrupted: false };
        let done = SagaEvent::StepCompleted { step: "ship it".into(), output: json!(null), by_hand: None };

        let offered = |events: &[&SagaEvent]| -> Vec<String> {
            let it = Instance { saga: "refund".into(), id: "it's".into() };
            choices(&it, events.iter().copied(), None).into_iter().map(|(choice, _)| choice).collect()
        };

        let [began, begun, stuck] = &forward;
        assert_eq!(
            offered(&[began, begun, stuck]),
            [
                r#"sagas retry refund 'it'\''s' --reason "the cause is mended""#,
                r#"sagas skip refund 'it'\''s' 'ship it' --reason "seen to by hand""#,
                r#"sagas cancel refund 'it'\''s' --reason "called off""#,
                r#"sagas resolve refund 'it'\''s' --as completed --reason "all done by hand""#,
            ]
        );
        // What is stuck at no step stays so, whatever becomes of its steps, and may have all behind it.
        for (events, outcome) in [
            ([began, &undoing, &nowhere], "compensated"),
            ([began, &nowhere, &undoing], "compensated"),
            ([began, begun, &nowhere], "completed"),
        ] {
            let choices = offered(&[&events[..], &[&done]].concat());
            assert!(choices.len() == 2 && choices[0].contains(" retry "), "{choices:?}");
            assert!(choices[1].contains(&format!("--as {outcome}")), "{choices:?}");
        }
    }

    #[test]
    fn a_saga_that_is_paused_is_resumed_first_and_not_for_what_has_ended() {
        let of = |given: GivenSaga<Fulfilment>| choices(&instance(), given.history(), Some("a closer look, by ada"));
        let resume = ("sagas resume fulfilment".into(), "fulfilment is paused: a closer look, by ada".into());

        assert_eq!(of(at_pay())[0], resume);
        assert_eq!(of(undo_of_pay()), [resume]);
        assert!(of(at_pay().resolved(Outcome::Completed, "x")).is_empty());
    }
}
