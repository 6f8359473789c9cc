//! Asks for a rebuild, and watches it until it has taken its place; or makes a single document anew.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use annals::{BoxError, By, Followers, KeyRebuilt, View};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    model::{Build, Model, model},
    progress::Progress,
};
use crate::{
    figures::{count, counted, span},
    read_models::{CustomerSpend, DepartmentSales, OpenOrder},
    say::{note, say_if_read},
    shop::{Role, Shop},
    typed,
};

/// How often the rebuild is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long it may take until a process begins it.
const BEGINNING: Duration = Duration::from_secs(60);

/// How long nobody may run it before that is told: a process that ended may have left it to another.
const ABANDONED: Duration = Duration::from_secs(15);

/// A rebuild that is asked for.
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) pace: Option<f64>,
    pub(crate) by: By,
}

/// Asks for a rebuild, and waits until it has taken its place or `stop` asks for an end.
///
/// # Errors
/// There is no such read model; the rebuild halts, or nobody begins it; Postgres cannot be asked.
pub(crate) async fn run(
    shop: &Shop,
    data_dir: &Path,
    asked: Asked,
    stop: &CancellationToken,
) -> Result<ExitCode, BoxError> {
    let (followers, name) = (shop.app.store().followers(), &*asked.name);
    let before = model(&followers, name).await?;
    // A rebuild that is under way is given up for this one.
    let newest =
        before.rebuild.map_or(before.live.generation, |rebuild| rebuild.generation.max(before.live.generation));
    followers.rebuild(name, asked.pace, &asked.by).await?;
    say_if_read(format_args!("{name} is to be rebuilt; what there is serves meanwhile"))?;
    let (begun, mut progress) = (Instant::now(), Progress::new(name)?);
    let outcome = tokio::select! {
        biased;
        outcome = watch(shop, name, newest, &mut progress) => outcome.map(Some),
        () = stop.cancelled() => Ok(None),
    };
    progress.finish();
    let command = |what| typed::command(data_dir, &format!("projections {what}"));
    match outcome? {
        Some(Ending::Serves(build)) => {
            let (position, parked) = (count(build.position.get()), counted(build.parked, "event"));
            let time = span(begun.elapsed().as_secs_f64());
            say_if_read(format_args!("{name} was rebuilt in {time} and serves: position {position}, {parked} parked"))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Ending::GivenUp(why)) => Err(format!("the rebuild of {name} was given up{why}; what serves stays").into()),
        Some(Ending::Replaced(by)) => {
            let list = command("list".into());
            Err(format!(
                "the rebuild of {name} was given up for another one{by}, which `{list}` shows; this one never served"
            )
            .into())
        }
        Some(Ending::Halted(why)) => {
            let (resume, cancel) = (format!("projections resume {name}"), format!("projections cancel {name}"));
            Err(format!("the rebuild of {name} halted: {why}; mend that and type `{resume}`, or `{cancel}`").into())
        }
        None => {
            let until = if shop.runs { "with the next process that runs the read models" } else { "where they run" };
            note(format_args!("the rebuild of {name} was not ended: it goes on {until}"));
            note(format_args!("   {}   shows it", command("list".into())));
            note(format_args!("   {}   gives it up", command(format!("cancel {name}"))));
            Ok(Role::Operator.stopped())
        }
    }
}

/// Whether the read model `name` is a view, whose documents have keys.
pub(super) fn is_view(name: &str) -> bool {
    [CustomerSpend::NAME, DepartmentSales::NAME, OpenOrder::NAME].contains(&name)
}

/// Folds one document of the view `name` anew, and puts it in place.
///
/// # Errors
/// There is no such view, its key has events parked, or Postgres cannot be asked.
pub(crate) async fn key(shop: &Shop, name: &str, key: &str, by: &By) -> Result<(), BoxError> {
    let app = &shop.app;
    let rebuilt = match name {
        CustomerSpend::NAME => app.rebuild_key::<CustomerSpend>(key, by).await?,
        DepartmentSales::NAME => app.rebuild_key::<DepartmentSales>(key, by).await?,
        OpenOrder::NAME => app.rebuild_key::<OpenOrder>(key, by).await?,
        name => {
            model(&app.store().followers(), name).await?;
            return Err(
                format!("{name} is a projector, whose rows have no keys to go by: rebuild it without --key").into()
            );
        }
    };
    Ok(say_if_read(key_rebuilt(&rebuilt))?)
}

fn key_rebuilt(rebuilt: &KeyRebuilt) -> String {
    let KeyRebuilt { name, key, position, events, changed, before, after } = rebuilt;
    let outcome = match (changed, before, after) {
        (false, _, Some(_)) => "it was right",
        (false, ..) => "there is no such document, as it should be",
        (true, None, _) => "it was missing, and is there again",
        (true, _, None) => "it should not have been there, and is gone",
        (true, ..) => "it was wrong, and is mended",
    };
    let (events, position) = (counted(*events as i64, "event"), count(position.get()));
    format!("{name}: {key} was folded anew from {events} up to position {position}: {outcome}")
}

enum Ending {
    /// What was built has taken its place.
    Serves(Build),
    /// Somebody cancelled it: who and why.
    GivenUp(String),
    /// Another rebuild was begun in its place: who asked for that one.
    Replaced(String),
    /// It does not go on by itself.
    Halted(String),
}

/// Watches the first rebuild that is made after the generation `newest`.
async fn watch(shop: &Shop, name: &str, newest: i64, progress: &mut Progress) -> Result<Ending, BoxError> {
    let followers = &shop.app.store().followers();
    let (begun, mut watched, mut run, mut is_told) = (Instant::now(), None, Instant::now(), shop.runs);
    loop {
        let Model { live, rebuild, .. } = model(followers, name).await?;
        let rebuild = rebuild.filter(|rebuild| rebuild.generation > newest);
        if rebuild.as_ref().unwrap_or(&live).state != "unowned" {
            run = Instant::now();
        } else if !is_told && run.elapsed() > ABANDONED {
            is_told = true;
            note(format_args!(
                "no process runs the rebuild of {name}: Ctrl-C, and the same command again begins it anew and runs it itself"
            ));
        }
        let latest = rebuild.as_ref().map_or(live.generation, |rebuild| rebuild.generation);
        if watched.is_none() && latest > newest {
            watched = Some(latest);
        }
        match rebuild {
            _ if watched == Some(live.generation) => return Ok(Ending::Serves(live)),
            _ if watched.is_some_and(|watched| latest > watched) => {
                return Ok(Ending::Replaced(asked_by(followers, name, "rebuild").await?));
            }
            Some(rebuild) if rebuild.state == "halted" => {
                return Ok(Ending::Halted(rebuild.reason.unwrap_or_else(|| "nobody says why".into())));
            }
            Some(rebuild) => progress.show(&rebuild),
            None if watched.is_some() => {
                return Ok(Ending::GivenUp(asked_by(followers, name, "cancel rebuild").await?));
            }
            None if begun.elapsed() > BEGINNING => {
                let time = span(BEGINNING.as_secs_f64());
                return Err(
                    format!("nobody began to rebuild {name} within {time}: does a process of this build run?").into()
                );
            }
            None => {}
        }
        sleep(LOOK).await;
    }
}

/// Who did `action` to it last, and why.
async fn asked_by(followers: &Followers, name: &str, action: &str) -> Result<String, BoxError> {
    let actions = followers.actions(Some(name), 10).await?;
    let last = actions.into_iter().find(|last| last.action == action);
    Ok(last.map_or_else(String::new, |last| match last.reason {
        Some(reason) => format!(" by {} ({reason})", last.actor),
        None => format!(" by {}", last.actor),
    }))
}

#[cfg(test)]
mod tests {
    use annals::Position;

    use super::*;

    #[test]
    fn a_document_that_was_folded_anew_is_told_with_what_it_was() {
        let told = |changed, before: Option<&str>, after: Option<&str>| {
            let (before, after) = (before.map(Into::into), after.map(Into::into));
            let (name, key, position) = ("sales".into(), "7".into(), Position::new(1_200));
            key_rebuilt(&KeyRebuilt { name, key, position, events: 1, changed, before, after })
        };

        let right = told(false, Some("1"), Some("1"));
        assert_eq!(right, "sales: 7 was folded anew from 1 event up to position 1,200: it was right");
        assert!(told(true, Some("1"), Some("2")).ends_with("it was wrong, and is mended"));
        assert!(told(true, None, Some("2")).ends_with("it was missing, and is there again"));
        assert!(told(true, Some("1"), None).ends_with("it should not have been there, and is gone"));
        assert!(told(false, None, None).ends_with("there is no such document, as it should be"));
    }
}
