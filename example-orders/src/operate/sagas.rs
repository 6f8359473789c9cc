//! Sagas: what there is of them, and what is done to them.

use std::{collections::BTreeMap, path::Path};

use annals::{BoxError, By, Followers, SagaCounts, SagaFilter, SagaInstance, SagaState, StepKeys, StoreError};
use chrono::{DateTime, Utc};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;
use uuid::Uuid;

use super::{
    choices::choices,
    timeline::{moments, timeline},
};
use crate::{
    cli::{Instance, SagaCommand},
    figures::{count, span},
    sagas,
    say::{note, say},
    shop::{Shop, is_run},
    tables::table,
    typed,
};

/// How many instances are looked up at once.
const PAGE: usize = 1_000;

/// An instance as it is shown to programs.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    saga: &'a str,
    id: &'a str,
    state: &'a str,
    step: Option<&'a str>,
    reason: Option<&'a str>,
    version: u32,
    /// Whether a process that is alive has this version of the saga.
    is_served: bool,
    correlation_id: Option<Uuid>,
    owner: Option<&'a str>,
    due_at: Option<DateTime<Utc>>,
    waits_for: Option<&'a str>,
    started_at: DateTime<Utc>,
    changed_at: DateTime<Utc>,
    age_seconds: i64,
}

/// Carries out what was typed.
///
/// # Errors
/// There is no such saga or instance, what was typed does not fit it, or Postgres cannot be asked.
pub(crate) async fn run(shop: &Shop, data_dir: &Path, command: SagaCommand) -> Result<(), BoxError> {
    let all = shop.app.sagas();
    match command {
        SagaCommand::List { filter, limit, json } => {
            let filter: SagaFilter = filter.into();
            known(filter.saga.as_deref())?;
            list(shop, &filter, limit, data_dir, json).await
        }
        SagaCommand::Summary { json } => {
            let counts = all.summary().await?;
            if json {
                return Ok(say(serde_json::to_string(&counts)?)?);
            }
            say(summed(counts.iter().map(|(saga, counts)| (&**saga, counts))))?;
            for (saga, why) in paused(&shop.app.store().followers()).await? {
                let resume = typed::command(data_dir, &format!("sagas resume {saga}"));
                say(format_args!("{saga} is paused: {why}. It goes on with\n   {resume}"))?;
            }
            Ok(())
        }
        SagaCommand::Show { instance, json } => show(shop, data_dir, &instance, json).await,
        SagaCommand::Retry { saga, id: Some(id), by, .. } => {
            let done = all.retry(known(Some(&saga))?, &id, &by.into()).await;
            told(shop, data_dir, &Instance { saga, id }, done, "goes on at once").await
        }
        SagaCommand::Retry { saga, step, because, by, .. } => {
            known(Some(&saga))?;
            let filter = SagaFilter { step, reason: because, ..SagaFilter::default() };
            retry_all(shop, data_dir, saga, filter, &by.into()).await
        }
        SagaCommand::Skip { instance, step, by } => {
            let done = all.skip(known(Some(&instance.saga))?, &instance.id, &step, &by.into()).await;
            told(shop, data_dir, &instance, done, &format!("goes on without {step}")).await
        }
        SagaCommand::Complete { instance, step, output, by } => {
            let done = all.complete(known(Some(&instance.saga))?, &instance.id, &step, output, &by.into()).await;
            told(shop, data_dir, &instance, done, &format!("goes on: {step} counts as done")).await
        }
        SagaCommand::NotDone { instance, step, by } => {
            let done = all.not_done(known(Some(&instance.saga))?, &instance.id, &step, &by.into()).await;
            told(shop, data_dir, &instance, done, &format!("goes on: {step} did not happen")).await
        }
        SagaCommand::Resolve { instance, outcome, by } => {
            let done = all.resolve(known(Some(&instance.saga))?, &instance.id, outcome.into(), &by.into()).await;
            done.map_err(|error| refused(&error, data_dir))?;
            Ok(say(format_args!("{instance} has ended: nothing more is done for it"))?)
        }
        SagaCommand::Cancel { instance, by } => {
            let done = all.cancel(known(Some(&instance.saga))?, &instance.id, &by.into()).await;
            told(shop, data_dir, &instance, done, "is called off: what it did is undone").await
        }
        SagaCommand::Pause { saga, by } => {
            hold(shop, &saga, &by.into(), true).await?;
            let resume = typed::command(data_dir, &format!("sagas resume {saga}"));
            Ok(say(format_args!(
                "{saga} is paused: none begins, and none goes on. Time does not stop: a step whose time is over by then, an hour if \
                 nothing else was said, has failed, and what was done is undone. It goes on with\n   {resume}"
            ))?)
        }
        SagaCommand::Resume { saga, by } => {
            hold(shop, &saga, &by.into(), false).await?;
            Ok(say(format_args!("{saga} goes on"))?)
        }
    }
}

/// The name, if it is one of a saga of this shop.
fn known(saga: Option<&str>) -> Result<&str, BoxError> {
    match saga {
        Some(saga) if !sagas::ALL.contains(&saga) => {
            Err(format!("there is no saga {saga:?}: there are {}", sagas::ALL.join(", ")).into())
        }
        saga => Ok(saga.unwrap_or_default()),
    }
}

async fn hold(shop: &Shop, saga: &str, by: &By, pause: bool) -> Result<(), BoxError> {
    known(Some(saga))?;
    let followers = shop.app.store().followers();
    if pause {
        followers.pause(saga, by).await?
    } else {
        followers.resume(saga, by).await?
    }
    Ok(())
}

/// Lets all instances of `saga` go on that are stuck and fit `filter`.
async fn retry_all(shop: &Shop, data_dir: &Path, saga: String, filter: SagaFilter, by: &By) -> Result<(), BoxError> {
    let all = shop.app.sagas();
    let mut filter = SagaFilter { saga: Some(saga.clone()), states: vec![SagaState::Stuck], ..filter };
    let mut count = 0;
    loop {
        let stuck = all.list(&filter, PAGE).await?;
        let Some(last) = stuck.last() else { break };
        filter.after = Some((last.started_at, last.stream.clone()));
        for instance in &stuck {
            match all.retry(&saga, &*instance.id, by).await {
                Ok(()) => count += 1,
                // Somebody else saw to it meanwhile, or it cannot be read.
                Err(StoreError::Unfit(why)) => note(why),
                Err(error) => return Err(error.into()),
            }
        }
    }
    say(format_args!("{count} of {saga} that were stuck go on at once"))?;
    say_who_runs(shop, data_dir, &saga).await
}

/// Says what was done, and who goes on with it.
async fn told(
    shop: &Shop,
    data_dir: &Path,
    instance: &Instance,
    done: Result<(), StoreError>,
    what: &str,
) -> Result<(), BoxError> {
    done.map_err(|error| refused(&error, data_dir))?;
    if paused(&shop.app.store().followers()).await?.contains_key(&instance.saga) {
        let resume = typed::command(data_dir, &format!("sagas resume {}", instance.saga));
        return Ok(say(format_args!("{instance} {what}, once {} is resumed:\n   {resume}", instance.saga))?);
    }
    say(format_args!("{instance} {what}"))?;
    say_who_runs(shop, data_dir, &instance.saga).await
}

/// The sagas that somebody has paused, each with why.
async fn paused(followers: &Followers) -> Result<BTreeMap<String, String>, BoxError> {
    let all = followers.lag().await?.into_iter();
    let paused =
        all.filter(|lag| lag.purpose == "live" && lag.state == "paused" && sagas::ALL.contains(&&*lag.follower));
    Ok(paused.map(|lag| (lag.follower, lag.reason.unwrap_or_default())).collect())
}

/// Says what to type where nobody runs `saga`.
async fn say_who_runs(shop: &Shop, data_dir: &Path, saga: &str) -> Result<(), BoxError> {
    if !is_run(shop.app.store(), saga).await? {
        let work = typed::command(data_dir, "work");
        say(format_args!("No process runs {saga} at present. This one does:\n   {work}"))?;
    }
    Ok(())
}

fn refused(error: &StoreError, data_dir: &Path) -> BoxError {
    match error {
        StoreError::Unfit(why) => {
            format!("nothing was done: {why}; `{}` shows what there is", typed::command(data_dir, "sagas list")).into()
        }
        error => error.to_string().into(),
    }
}

async fn list(shop: &Shop, filter: &SagaFilter, limit: usize, data_dir: &Path, json: bool) -> Result<(), BoxError> {
    let mut instances = shop.app.sagas().list(filter, limit.saturating_add(1)).await?;
    let is_cut = instances.len() > limit;
    instances.truncate(limit);
    let now = Utc::now();
    if is_cut {
        note(format_args!("there are more than {limit}: choose some, or say --limit N"));
    }
    if json {
        for instance in &instances {
            say(serde_json::to_string(&shown(instance, now))?)?;
        }
        return Ok(());
    }
    if instances.is_empty() {
        return Ok(say("there is none")?);
    }
    let paused = paused(&shop.app.store().followers()).await?;
    say(format_args!("{}\n", listed(&instances, &paused, now)))?;
    let first = instances.iter().find(|it| it.state == SagaState::Stuck).or(instances.first());
    if let Some(first) = first {
        let show = format!("sagas show {} {}", first.saga, typed::quoted(&first.id));
        say(typed::lines(data_dir, [(&*show, "all that happened to it, and what can be done")]))?;
    }
    Ok(())
}

fn shown(instance: &SagaInstance, now: DateTime<Utc>) -> Shown<'_> {
    Shown {
        saga: &instance.saga,
        id: &instance.id,
        state: instance.state.as_str(),
        step: instance.step.as_deref(),
        reason: instance.reason.as_deref(),
        version: instance.definition,
        is_served: instance.is_served,
        correlation_id: instance.correlation_id,
        owner: instance.owner.as_deref(),
        due_at: instance.due_at,
        waits_for: instance.waits_for.as_deref(),
        started_at: instance.started_at,
        changed_at: instance.changed_at,
        age_seconds: (now - instance.started_at).num_seconds().max(0),
    }
}

fn listed(instances: &[SagaInstance], paused: &BTreeMap<String, String>, now: DateTime<Utc>) -> Table {
    let mut table = table(["saga", "id", "version", "state", "step", "age", "next", "owner", "reason"]);
    for instance in instances {
        let is_open = !matches!(instance.state, SagaState::Completed | SagaState::Compensated);
        let served = if is_open && !instance.is_served { " (nobody has it)" } else { "" };
        let next = match instance.due_at {
            _ if is_open && paused.contains_key(&instance.saga) => "paused".into(),
            _ if instance.waits_for.is_some() => {
                format!("when {} answers", instance.waits_for.as_deref().unwrap_or_default())
            }
            Some(at) if at > now => format!("in {}", span((at - now).as_seconds_f64())),
            Some(_) => "now".into(),
            None => String::new(),
        };
        table.add_row([
            instance.saga.clone(),
            instance.id.to_string(),
            format!("{}{served}", instance.definition),
            instance.state.as_str().into(),
            instance.step.clone().unwrap_or_default(),
            span((now - instance.started_at).as_seconds_f64()),
            next,
            instance.owner.clone().unwrap_or_default(),
            instance.reason.clone().unwrap_or_default(),
        ]);
    }
    for words in [1, 2, 3, 4, 7, 8] {
        if let Some(column) = table.column_mut(words) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table
}

fn summed<'a>(all: impl Iterator<Item = (&'a str, &'a SagaCounts)>) -> Table {
    let mut table = table(["saga", "running", "completed", "compensated", "stuck"]);
    for (saga, counts) in all {
        let SagaCounts { running, completed, compensated, stuck, .. } = *counts;
        let [running, completed, compensated, stuck] =
            [running, completed, compensated, stuck].map(|number| count(number as i64));
        table.add_row([saga.to_owned(), running, completed, compensated, stuck]);
    }
    table
}

async fn show(shop: &Shop, data_dir: &Path, instance: &Instance, json: bool) -> Result<(), BoxError> {
    let all = shop.app.sagas();
    let history = all.history(known(Some(&instance.saga))?, &instance.id).await?;
    if history.is_empty() {
        let [list, parked] = ["sagas list", "dead-letters list"]
            .map(|what| typed::command(data_dir, &format!("{what} {}", instance.saga)));
        let why = format!("`{list}` shows what there is, `{parked}` the events from which none could begin");
        return Err(format!("there is no {instance}: {why}").into());
    }
    let keys = all.keys(&instance.saga, &instance.id).await?;
    if json {
        for moment in moments(&history, &keys) {
            say(serde_json::to_string(&moment)?)?;
        }
        return Ok(());
    }
    let began = history.first().map(|first| first.recorded_at.format("%Y-%m-%d %H:%M:%S").to_string());
    say(format_args!("{instance}, since {}\n{}", began.unwrap_or_default(), timeline(&history)))?;
    if !keys.is_empty() {
        say(format_args!("What its steps are known by outside:\n{}", keyed(&keys)))?;
    }
    let paused = paused(&shop.app.store().followers()).await?;
    let paused = paused.get(&instance.saga).map(String::as_str);
    let choices = choices(instance, history.iter().map(|recorded| &recorded.event), paused);
    if choices.is_empty() {
        return Ok(());
    }
    let choices = choices.iter().map(|(what, when)| (&**what, &**when));
    Ok(say(format_args!("What can be done:\n{}", typed::lines(data_dir, choices)))?)
}

fn keyed(keys: &[StepKeys]) -> Table {
    let mut table = table(["step", "key", "key of its undo", "dead keys"]);
    for StepKeys { step, key, dead, undo } in keys {
        let dead: Vec<String> = dead.iter().map(ToString::to_string).collect();
        table.add_row([step.clone(), key.to_string(), undo.to_string(), dead.join(" ")]);
    }
    for words in 1..4 {
        if let Some(column) = table.column_mut(words) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table
}
