//! An instance that is run: what there is to do is done, what comes of it is told, and then it is given up until it is due.

use super::{
    super::{
        definition::Attempt,
        plan::Planned,
        runtime::{LOOK, UNREAD},
        state::StepState,
    },
    *,
};

/// How something ended that was under way.
enum Landed {
    Told(Input),
    /// It was not begun: the target is not called, for so long.
    Postponed(&'static str, Duration),
    /// It was not begun: when its turn had come, somebody had called the instance off, or seen to the step.
    Unwanted,
}

type Flights = FuturesUnordered<BoxFuture<'static, (&'static str, What, Landed)>>;

impl Instance {
    /// Runs it as far as there is something to do.
    pub(crate) async fn run(mut self, interrupted: bool) {
        // Nothing is lost by asking once more whose it is.
        if self.doubted && !self.is_still_held().await {
            return;
        }
        if self.version == Version::NONE {
            while let Err(error) = self.catch_up().await {
                if matches!(error, StoreError::Closed) || self.runtime.stop.is_cancelled() {
                    return;
                }
                tracing::warn!(stream = %self.stream, %error, "an instance of a saga cannot be read; tried again");
                sleep(PAUSE).await;
            }
        }
        let mut flights = Flights::new();
        let mut flying: HashSet<(&'static str, What)> = HashSet::new();
        let mut interrupted = interrupted;
        loop {
            if self.doubted && !self.is_still_held().await {
                // Somebody else goes on with it. What is under way here is told of when it comes: with the same key.
                while let Some((_, _, landed)) = flights.next().await {
                    if let Landed::Told(input) = landed
                        && self.tell_surely(input, Writer::Other).await.is_none()
                    {
                        return;
                    }
                }
                return;
            }
            // Nothing is done on half a history. What is under way may have happened, for whoever can read it.
            if let Some(error) = self.broken.clone() {
                let interrupted = interrupted || !flying.is_empty();
                let broken = Input::Broken { step: None, reason: unreadable(&error), interrupted };
                if self.tell_surely(broken, Writer::Owner { under_way: 0 }).await.is_some() && self.held {
                    self.release().await;
                }
                return;
            }
            if interrupted {
                if self.tell_surely(Input::Interrupted, Writer::Owner { under_way: 0 }).await.is_none() {
                    return;
                }
                interrupted = false;
                continue;
            }
            let (stopping, paused) = (self.runtime.stop.is_cancelled(), self.runtime.is_paused(self.definition.name()));
            if !stopping && !paused && self.begin(&mut flights, &mut flying).await.is_none() {
                return;
            }
            // Somebody else has told it something: whose it is comes first.
            if self.doubted || self.broken.is_some() {
                continue;
            }
            if flying.is_empty() {
                if !self.held {
                    // Nobody's now: whoever is quicker takes it once it is due.
                    let now = self.runtime.now();
                    if wakes_at(self.plan(), &self.state, now).is_some_and(|at| at < later(now, LOOK)) {
                        self.runtime.due.notify_one();
                    }
                    return;
                }
                if self.release().await {
                    return;
                }
                self.postponed.clear();
                continue;
            }
            let now = self.runtime.now();
            let wakes =
                wakes_at(self.plan(), &self.state, now).map(|at| self.unread_until.map_or(at, |until| at.max(until)));
            let pause = wakes.map_or(Duration::from_secs(3600), |at| (at - now).to_std().unwrap_or_default());
            // Who begins nothing has nothing to see to meanwhile.
            let pause = if stopping || paused { pause.max(LOOK) } else { pause };
            let input = tokio::select! {
                Some((step, what, landed)) = flights.next() => {
                    flying.remove(&(step, what));
                    match landed {
                        Landed::Told(input) => input,
                        Landed::Postponed(target, wait) => {
                            let until = later(self.runtime.now(), wait);
                            self.postponed.insert((step, what), (target, until));
                            continue;
                        }
                        Landed::Unwanted => {
                            self.doubted = true;
                            let _ = self.catch_up().await;
                            continue;
                        }
                    }
                }
                () = sleep(pause), if wakes.is_some() => continue,
            };
            if self.tell_surely(input, Writer::Owner { under_way: flying.len() }).await.is_none() {
                return;
            }
        }
    }

    /// Begins what there is to do and is not under way. None once the app ends.
    async fn begin(&mut self, flights: &mut Flights, flying: &mut HashSet<(&'static str, What)>) -> Option<()> {
        loop {
            // Whoever is not sure that it is his infers nothing from what he has not done.
            if self.doubted || !self.held || self.broken.is_some() {
                return Some(());
            }
            let writer = Writer::Owner { under_way: flying.len() };
            let now = self.runtime.now();
            let plan = self.definition.clone();
            let before = self.version;
            let is_over = wakes_at(self.plan(), &self.state, now).is_some_and(|at| at <= now);
            if is_over && !self.may_be_unread(now).await {
                self.tell_surely(Input::Tick, writer).await?;
                if self.version != before || self.doubted {
                    continue;
                }
            }
            // What nobody tries, and nobody is to try any more.
            let is_late = |step: &&StepState| {
                let is_call = plan.plan().step(&step.name).is_some_and(|it| !matches!(it.kind, Kind::Wait { .. }));
                let here = flying.iter().any(|(name, _)| *name == step.name);
                let is_untried = step.is_open() && step.unknown == 0 && !here && !is_in_doubt(plan.plan(), step);
                is_call && is_untried && self.state.is_over(step, now)
            };
            let late = self.state.current().find(is_late).map(|step| step.name.clone());
            if let Some(step) = late {
                self.tell_surely(Input::NeverTried { step }, writer).await?;
                if self.version != before {
                    continue;
                }
                return Some(());
            }
            let mut next = effects(plan.plan(), &self.state, now).into_iter();
            let Some(effect) = next.find(|effect| {
                let key = (effect.step, effect.what);
                !flying.contains(&key) && !self.postponed.contains_key(&key)
            }) else {
                return Some(());
            };
            if plan.commits(effect.step, effect.what) {
                self.commit(&effect, writer).await?;
                continue;
            }
            let call = self.call(&effect)?;
            // The closures are the application's: what they do before they wait may panic.
            let attempt = guarded(|| plan.attempt(effect.step, effect.what, call));
            let attempt = match attempt {
                Ok(Ok(attempt)) => attempt,
                Ok(Err(reason)) => {
                    let step = Some(effect.step.to_owned());
                    self.tell_surely(Input::Broken { step, reason, interrupted: false }, writer).await?;
                    continue;
                }
                Err(panic) => {
                    let panic = StepError::unknown(panic);
                    Box::pin(async move { Err(panic) })
                }
            };
            flying.insert((effect.step, effect.what));
            let planned = plan.plan().step(effect.step);
            let (limit, target) = planned.map_or((PAUSE, None), |planned| (planned.attempt_timeout, planned.target));
            let breakers = self.runtime.breakers.clone();
            // One that has never been tried is not begun any more once what was done is undone.
            let is_first =
                effect.what == What::Run && self.state.step(effect.step).is_some_and(|step| step.unknown == 0);
            let (runtime, stream) = (self.runtime.clone(), self.stream.clone());
            flights.push(Box::pin(async move {
                let (step, what) = (effect.step, effect.what);
                let wanted = async { !is_first || !is_called_off(&runtime, &stream, step).await };
                let admitted = match &target {
                    None => None,
                    Some(target) => match breakers.admit(target, wanted).await {
                        Ok(None) => return (step, what, Landed::Unwanted),
                        Ok(admitted) => admitted,
                        Err(wait) => return (step, what, Landed::Postponed(target.name, wait)),
                    },
                };
                let input = try_once(effect, attempt, limit).await;
                if let Some(admitted) = admitted {
                    admitted.end(failure_of(&input));
                }
                (step, what, Landed::Told(input))
            }));
        }
    }

    /// Whether a wait would be over whose event may have come in time: whoever reads the log for the saga is not that far.
    async fn may_be_unread(&mut self, now: DateTime<Utc>) -> bool {
        if self.unread_until.is_some_and(|until| until > now) {
            return true;
        }
        self.unread_until = None;
        let waits = |step: &StepState| self.plan().step(&step.name).is_some_and(Planned::takes_events);
        let over = |step: &&StepState| step.is_open() && !step.timed_out && step.deadline_at <= now && waits(step);
        let deadline = self.state.current().filter(over).map(|step| step.deadline_at).max();
        if let Some(deadline) = deadline
            && !self.runtime.has_read_all(self.definition.name(), deadline).await
        {
            self.unread_until = Some(later(self.runtime.now(), UNREAD));
        }
        self.unread_until.is_some()
    }

    fn call(&self, effect: &Effect) -> Option<Call> {
        let options = Options {
            correlation_id: self.correlation_id,
            causation_id: self.cause(),
            traceparent: self.traceparent.clone(),
            ..Options::default()
        };
        Some(Call {
            id: Id::from(self.stream.id()),
            key: if effect.what == What::Undo { self.state.undo_key(effect.step) } else { self.state.key(effect.step) },
            command_key: match effect.what {
                What::Undo => self.state.undo_key(effect.step),
                _ => self.state.nth_key(effect.step, 0),
            },
            attempt: effect.attempt,
            now: self.runtime.now(),
            state: Arc::new(self.state.clone()),
            app: self.runtime.app()?,
            options,
        })
    }

    /// Executes a command that commits together with its step. None once the app ends.
    async fn commit(&mut self, effect: &Effect, writer: Writer) -> Option<()> {
        let now = self.runtime.now();
        let step = effect.step.to_owned();
        let input = match effect.what {
            What::Undo => Input::Undone { step: step.clone() },
            _ => Input::Succeeded { step: step.clone(), key: effect.key, output: Value::Null },
        };
        let decided = decide(self.plan(), &self.state, input, now);
        let (events, state) = decided.ok()?;
        let append = match self.append(&events) {
            Ok(append) => append,
            Err(error) => {
                let reason = format!("what happens cannot be recorded: {error}");
                let broken = Input::Broken { step: Some(step), reason, interrupted: false };
                return self.tell_surely(broken, writer).await;
            }
        };
        let ids: Vec<Uuid> = append.events.iter().map(|event| event.event_id).collect();
        let row = self.row(&state, writer, now);
        let held = row.owner.is_some();
        let (written, call) = (Along { append, row }, self.call(effect)?);
        self.runtime.write_point().ok()?;
        let command = guarded(|| self.definition.command(effect.step, effect.what, call, written));
        let command = match command {
            Ok(Ok(command)) => command,
            Ok(Err(reason)) => {
                let broken = Input::Broken { step: Some(step), reason, interrupted: false };
                return self.tell_surely(broken, writer).await;
            }
            Err(panic) => {
                let panic = StepError::transient(panic);
                Box::pin(async move { Err(NotCommitted::Failed(panic)) })
            }
        };
        let running = tokio::spawn(command);
        let failure = match AbortOnDropHandle::new(running).await {
            Ok(Ok(())) => {
                self.runtime.write_point().ok()?;
                self.version = Version::new(self.version.get() + events.len() as i64);
                self.accept(&events, &ids, state, held);
                return Some(());
            }
            Ok(Err(NotCommitted::Overtaken)) => {
                self.doubted = true;
                let _ = self.catch_up().await;
                return Some(());
            }
            // The stream knows: if it was not written, it is decided again.
            Ok(Err(NotCommitted::Unknown)) => {
                self.doubted = true;
                sleep(PAUSE).await;
                let _ = self.catch_up().await;
                return Some(());
            }
            Ok(Err(NotCommitted::Failed(error))) => error,
            Err(error) if error.is_panic() => {
                StepError::transient(format!("the step panicked: {}", message(error.into_panic())))
            }
            Err(_) => return None,
        };
        let failure = failure.into();
        let input = match effect.what {
            What::Undo => Input::UndoFailed { step, failure },
            _ => Input::Failed { step, key: effect.key, failure },
        };
        self.tell_surely(input, writer).await
    }

    /// Gives it up until it is due; or not, if something has happened to it meanwhile.
    async fn release(&mut self) -> bool {
        let now = self.runtime.now();
        let to_do = !effects(self.plan(), &self.state, now).is_empty();
        let mut due_at = if to_do { Some(now) } else { wakes_at(self.plan(), &self.state, now) };
        let mut waits_for = None;
        if let Some((target, until)) = self.postponed.values().min_by_key(|(_, until)| *until) {
            // Not all at once: the first one that calls there decides for all.
            let spread = self.state.started.as_u128() as u64 % 1_000;
            let until = later(*until, (*until - now).to_std().unwrap_or_default().mul_f64(spread as f64 / 4_000.0));
            let wakes = wakes_at(self.plan(), &self.state, now);
            (due_at, waits_for) = (Some(wakes.map_or(until, |at| at.min(until))), Some(*target));
        }
        if let Some(until) = self.unread_until {
            due_at = due_at.map(|at| at.max(until));
        }
        let row = self.row(&self.state, Writer::Owner { under_way: 0 }, now);
        loop {
            let store = &self.runtime.store;
            let releasing = store.inner.sql.release_saga.query();
            let releasing = releasing
                .bind(self.stream.as_str())
                .bind(self.runtime.process)
                .bind(self.version.get())
                .bind(due_at)
                .bind(waits_for)
                .bind(row.state)
                .bind(&row.step)
                .bind(&row.reason);
            match store.inner.reads.execute("release an instance of a saga", releasing).await {
                Ok(1..) => {
                    if due_at.is_some_and(|at| at < later(now, LOOK)) {
                        self.runtime.due.notify_one();
                    }
                    return true;
                }
                Ok(0) => {
                    self.doubted = true;
                    while let Err(error) = self.catch_up().await {
                        if matches!(error, StoreError::Closed) || self.runtime.stop.is_cancelled() {
                            return true;
                        }
                        sleep(PAUSE).await;
                    }
                    return false;
                }
                Err(StoreError::Closed) => return true,
                Err(error) => {
                    tracing::warn!(stream = %self.stream, %error, "an instance of a saga cannot be released; tried again");
                    if self.runtime.stop.is_cancelled() {
                        return true;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether it is still this process's to run.
    async fn is_still_held(&mut self) -> bool {
        loop {
            let store = &self.runtime.store;
            let asking = store.inner.sql.read_saga.query().bind(self.stream.as_str());
            match store.inner.reads.optional("read who runs a saga", asking).await {
                Ok(row) => {
                    let owner: Option<Uuid> = row.and_then(|row| sqlx::Row::get(&row, 0));
                    let mine = owner == Some(self.runtime.process);
                    (self.doubted, self.held) = (false, mine);
                    return mine;
                }
                Err(StoreError::Closed) => return false,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// Whether an instance is not at `step` any more: somebody else called it off, or saw to the step. In doubt it is.
async fn is_called_off(runtime: &Runtime, stream: &StreamId, step: &str) -> bool {
    let asking = runtime.store.inner.sql.read_saga.query().bind(stream.as_str());
    let Ok(Some(row)) = runtime.store.inner.reads.optional("read where a saga is", asking).await else { return false };
    let (state, steps): (String, Option<String>) = (sqlx::Row::get(&row, 1), sqlx::Row::get(&row, 2));
    state != "running" || !steps.unwrap_or_default().split(", ").any(|own| own == step)
}

/// What of an attempt is a failure of whoever was called: an answer is none, whatever it says.
fn failure_of(input: &Input) -> Option<&str> {
    match input {
        Input::Failed { failure, .. } | Input::NotAnswered { failure, .. } | Input::UndoFailed { failure, .. } => {
            (failure.kind != FailureKind::Business && !failure.is_final).then_some(&*failure.error)
        }
        _ => None,
    }
}

/// Runs an attempt to its end, however it ends.
async fn try_once(effect: Effect, attempt: Attempt, limit: Duration) -> Input {
    let mut task = AbortOnDropHandle::new(tokio::spawn(attempt));
    let result = match timeout(limit, &mut task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) if error.is_panic() => {
            Err(StepError::unknown(format!("the step panicked: {}", message(error.into_panic()))))
        }
        Ok(Err(_)) => Err(StepError::unknown("the step was cut off")),
        Err(_) => Err(StepError::unknown(format!("no answer within {limit:?}"))),
    };
    let (step, key) = (effect.step.to_owned(), effect.key);
    match (effect.what, result) {
        (What::Run | What::Ask, Ok(Found::Happened(output))) => Input::Succeeded { step, key, output },
        (What::Run | What::Ask, Ok(Found::NotSeen)) => Input::NotSeen { step, key },
        (What::Run | What::Ask, Ok(Found::Never)) => Input::NotDone { step, key },
        (What::Run, Err(error)) => Input::Failed { step, key, failure: error.into() },
        (What::Ask, Err(error)) if error.refused => Input::Failed { step, key, failure: error.into() },
        (What::Ask, Err(error)) => Input::NotAnswered { step, key, failure: error.into() },
        (What::Undo, Ok(_)) => Input::Undone { step },
        (What::Undo, Err(error)) => Input::UndoFailed { step, failure: error.into() },
    }
}
