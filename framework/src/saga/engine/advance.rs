//! How far an instance goes by itself: to the next step, to the next undo, to its end, or until it is stuck.

use super::*;

impl<'p> Turn<'p> {
    /// Goes as far as nothing has to be done outside.
    pub(super) fn advance(&mut self) {
        loop {
            let goes_on = matches!(self.state.phase, Phase::Forward | Phase::Undoing);
            // What a build could not record that had no step of that name, or could not read it.
            let interrupted = |step: &&StepState| is_in_doubt(self.plan, step);
            let interrupted = self.state.current().find(interrupted).map(|step| step.name.clone());
            if let Some(step) = interrupted.filter(|_| goes_on) {
                self.is_interrupted(&step);
                continue;
            }
            if goes_on && let Some((step, reason)) = self.waits_for_nobody() {
                return self.stuck(Some(&step), reason);
            }
            let moved = match self.state.phase {
                Phase::Forward => self.advance_forward(),
                Phase::Undoing => self.advance_undo(),
                _ => false,
            };
            if !moved {
                return;
            }
        }
    }

    /// Whether it waits for what did not come in time, until somebody sees to it.
    fn is_missed(&self, step: &StepState) -> bool {
        let planned = self.plan.step(&step.name);
        let is_kept = planned.is_some_and(|it| matches!(it.kind, Kind::Wait { in_vain: InVain::Stuck, .. }));
        is_kept && step.timed_out && step.is_open() && step.kept.is_none()
    }

    /// A step of which it is not known whether it happened, and that nobody finds out by himself.
    fn waits_for_nobody(&self) -> Option<(String, String)> {
        let stuck = |step: &&StepState| {
            let waits = matches!(step.progress, Progress::Waiting | Progress::UndoWaiting);
            let lapsed =
                self.plan.step(&step.name).and_then(|it| lives_until(it, step)).is_some_and(|at| at <= self.now);
            waits && (step.next_at.is_none() || lapsed)
        };
        if let Some(missed) = self.state.current().find(|step| self.is_missed(step)) {
            return Some((missed.name.clone(), MISSED.into()));
        }
        let step = self.state.current().find(stuck)?;
        let (name, error) = (&step.name, step.last_error.as_deref().unwrap_or_default());
        let (what, look) = match step.progress {
            Progress::Waiting => ("happened", self.look(name)),
            _ => ("was undone", self.look_for_undo(name)),
        };
        let reason =
            format!("it is not known whether {name} {what}, and it is not tried again by itself: {error}. {look}");
        Some((step.name.clone(), reason))
    }

    fn advance_forward(&mut self) -> bool {
        // What came for a step that waits ends it.
        let waits = |step: &&StepState| {
            step.progress == Progress::Running
                && step.kept.is_some()
                && self.plan.step(&step.name).is_some_and(|planned| matches!(planned.kind, Kind::Wait { .. }))
        };
        if let Some(step) = self.state.steps.iter().find(waits) {
            let (step, taken) = (step.name.clone(), step.kept.clone().unwrap_or(Ok(Value::Null)));
            self.received(step, taken);
            return true;
        }
        let given_up = |step: &&StepState| {
            step.progress == Progress::Failed || (step.timed_out && step.is_open() && !self.is_missed(step))
        };
        if let Some(step) = self.state.steps.iter().find(given_up) {
            let (name, error) = (step.name.clone(), step.last_error.clone());
            let reason = match (step.timed_out, error) {
                (true, Some(error)) => format!("{name} did not succeed in its time: {error}"),
                (true, None) => format!("{name} did not succeed in its time"),
                (false, Some(error)) => format!("{name}: {error}"),
                (false, None) => format!("{name} failed"),
            };
            self.begin_undo(Some(name), reason);
            return true;
        }
        let nth = match self.stage() {
            Ok(nth) => nth,
            Err(step) => {
                let is_done = self.state.step(&step).is_some_and(|step| step.progress == Progress::Completed);
                let reason = match is_done {
                    true => format!(
                        "step {step}, the last that it has done, is not in version {} of the saga as this build has it: bring the step \
                         back, and retry; or skip it, if what comes behind the steps before it is to run. It stays done then, and is \
                         undone if the rest is",
                        self.state.definition
                    ),
                    false => self.is_gone(&step),
                };
                self.stuck(Some(&step), reason);
                return true;
            }
        };
        let ahead =
            |planned: &&Planned| self.state.step(planned.name).is_none_or(|step| step.progress == Progress::Ahead);
        if let Some(planned) = self.plan.stages[..nth].iter().flatten().find(ahead) {
            let step = planned.name.to_owned();
            if !self.state.planned.contains(&step) {
                let reason = "a newer build put it before a step that had begun".into();
                self.emit(SagaEvent::StepSkipped { step, reason });
                return true;
            }
            let reason = format!(
                "step {step} was moved, in version {} of the saga as this build has it, to before where it is, and it never came by: \
                 bring the order back, and retry; or skip the step, if this instance can do without",
                self.state.definition
            );
            self.stuck(Some(&step), reason);
            return true;
        }
        let Some(stage) = self.plan.stages.get(nth) else {
            self.emit(SagaEvent::SagaCompleted);
            return true;
        };
        let Some(planned) = stage.iter().find(ahead) else { return false };
        self.start(planned);
        true
    }

    fn start(&mut self, planned: &'p Planned) {
        let step = planned.name.to_owned();
        match planned.when.as_ref().map(|when| when(&self.state)) {
            Some(Err(error)) => return self.stuck(Some(planned.name), error),
            Some(Ok(false)) => {
                let reason = "its condition does not hold".into();
                return self.emit(SagaEvent::StepSkipped { step, reason });
            }
            Some(Ok(true)) | None => {}
        }
        let deadline_at = match planned.until.as_ref().map(|until| until(&self.state)) {
            Some(Err(error)) => return self.stuck(Some(planned.name), error),
            Some(Ok(at)) => at,
            None => later(self.now, planned.timeout),
        };
        // As far as everybody can write it down.
        let deadline_at = deadline_at.clamp(DateTime::UNIX_EPOCH, later(self.now, Duration::MAX));
        self.emit(SagaEvent::StepStarted { step, deadline_at });
    }

    /// Which stage it is at; or the step that it is at and that is not there.
    ///
    /// Steps are found by name. New ones before the latest that began are left out; one that was moved there is for somebody to judge.
    fn stage(&self) -> Result<usize, String> {
        let begun = self.state.steps.iter().filter(|step| step.begun > 0);
        if let Some(open) = begun.clone().find(|step| step.is_open() && self.plan.step(&step.name).is_none()) {
            return Err(open.name.clone());
        }
        // What was left out says nothing of where it is.
        let counts =
            |step: &&StepState| !step.left_out && !matches!(step.progress, Progress::Skipped | Progress::Undone);
        let nth = match begun.filter(counts).max_by_key(|step| step.begun) {
            Some(latest) => self.plan.stage_of(&latest.name).ok_or_else(|| latest.name.clone())?,
            None => 0,
        };
        let is_done = |planned: &Planned| {
            let progress = self.state.step(planned.name).map(|step| step.progress);
            matches!(progress, Some(Progress::Completed | Progress::Skipped | Progress::Undone))
        };
        let rest = &self.plan.stages[nth..];
        Ok(nth + rest.iter().take_while(|stage| stage.iter().all(is_done)).count())
    }

    /// Why it is stuck at a step that this build does not have.
    pub(super) fn is_gone(&self, step: &str) -> String {
        format!(
            "step {step}, which it is at, is not in version {} of the saga as this build has it: bring the step back, and retry; or \
             skip it, once it is known what became of it",
            self.state.definition
        )
    }

    fn advance_undo(&mut self) -> bool {
        let plan = self.plan;
        let known = |step: &StepState| plan.step(&step.name).is_some();
        let lost = self.state.current().find(|step| !known(step)).map(|step| step.name.clone());
        if let Some(step) = lost {
            self.stuck(Some(&step), self.is_gone(&step));
            return true;
        }
        // A build that did not have it has left a wait open.
        let waits = |step: &&StepState| {
            step.is_open() && plan.step(&step.name).is_some_and(|planned| matches!(planned.kind, Kind::Wait { .. }))
        };
        let waits = self.state.current().find(waits).map(|step| step.name.clone());
        if let Some(step) = waits {
            self.emit(SagaEvent::StepTimedOut { step, under_way: false });
            return true;
        }
        if self.state.current().next().is_some() {
            return false;
        }
        // What came for a step that had not begun, or was given up, has happened, too.
        let came = self.state.steps.iter().find_map(|step| {
            let output = step.kept.as_ref()?.as_ref().ok()?;
            self.came_late(step).then(|| (step.name.clone(), output.clone()))
        });
        if let Some((step, output)) = came {
            self.emit(SagaEvent::StepCompleted { step, output, by_hand: None });
            return true;
        }
        let done = self.state.steps.iter().filter(|step| step.progress == Progress::Completed);
        let undone = |step: &&StepState| plan.step(&step.name).is_none_or(|planned| planned.has_undo);
        let Some(step) = done.filter(undone).max_by_key(|step| step.completed) else {
            self.emit(SagaEvent::SagaCompensated { reason: self.state.reason.clone() });
            return true;
        };
        let name = step.name.clone();
        if known(step) {
            self.emit(SagaEvent::UndoStarted { step: name });
        } else {
            let reason = format!(
                "{name} is done and is not in version {} of the saga as this build has it, so nothing says how it is undone: \
                 bring the step back, and retry; or undo it by hand, and skip it",
                self.state.definition
            );
            self.stuck(Some(&name), reason);
        }
        true
    }
}
