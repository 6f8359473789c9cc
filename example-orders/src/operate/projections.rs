//! Read models: how far they are, and what is done to them.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use annals::{BoxError, Followers};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    model::{self, Build, Model, follower, model, models},
    rebuild, verify,
};
use crate::{
    cli::Projections, figures::count, figures::span, say::say, shop::Shop, signals::until, tables::table, typed,
};

/// How long a comparison waits for read models that begin with this very command, and how often it looks.
const SETTLING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// Carries out what was typed.
///
/// # Errors
/// There is no such read model, or Postgres cannot be asked.
pub(crate) async fn run(
    shop: &Shop,
    data_dir: &Path,
    command: Projections,
    stop: &CancellationToken,
) -> Result<ExitCode, BoxError> {
    let followers = shop.app.store().followers();
    let (followers, role) = (&followers, command.role());
    let done = match command {
        Projections::Rebuild { name, key: Some(key), by, .. } => {
            until(stop, rebuild::key(shop, &name, &key, &by.into())).await
        }
        Projections::Rebuild { name, pace, by, .. } => {
            return rebuild::run(shop, data_dir, rebuild::Asked { name, pace, by: by.into() }, stop).await;
        }
        Projections::Verify { name, json } => {
            let verified = until(stop, verify::run(shop, data_dir, name.as_deref(), json)).await?;
            return Ok(verified.unwrap_or(role.stopped()));
        }
        Projections::List { all, json } => until(stop, list(followers, all, json)).await,
        Projections::Pause { name, by } => {
            until(stop, async {
                if follower(followers, &name).await?.live.state == "paused" {
                    return Ok(say(format_args!("{name} is paused already"))?);
                }
                followers.pause(&name, &by.into()).await?;
                let resume = typed::command(data_dir, &format!("projections resume {name}"));
                Ok(say(format_args!("{name} is paused; what it shows can be read. It goes on with\n   {resume}"))?)
            })
            .await
        }
        Projections::Resume { name, by } => {
            until(stop, async {
                let before = follower(followers, &name).await?;
                if !before.live.is_held() && !before.rebuild.is_some_and(|rebuild| rebuild.is_held()) {
                    return Ok(say(format_args!("{name} is not paused"))?);
                }
                followers.resume(&name, &by.into()).await?;
                Ok(say(format_args!("{name} goes on"))?)
            })
            .await
        }
        Projections::Cancel { name, by } => {
            until(stop, async {
                model(followers, &name).await?;
                let was_built = followers.cancel_rebuild(&name, &by.into()).await?;
                let said = if was_built {
                    "the rebuild was given up; what serves was not touched"
                } else {
                    "it is not being rebuilt"
                };
                Ok(say(format_args!("{name}: {said}"))?)
            })
            .await
        }
    };
    Ok(done?.map_or(role.stopped(), |()| ExitCode::SUCCESS))
}

async fn list(followers: &Followers, all: bool, json: bool) -> Result<(), BoxError> {
    let models = match all {
        true => model::all(followers).await?.into_iter().map(|(_, model)| model).collect(),
        false => models(followers).await?,
    };
    if !json {
        return Ok(say(listed(&models))?);
    }
    for model in &models {
        say(serde_json::to_string(model)?)?;
    }
    Ok(())
}

/// Every read model. Those that this process has just begun to run are given a moment to get going and to catch up.
pub(super) async fn settled(shop: &Shop, followers: &Followers) -> Result<Vec<Model>, BoxError> {
    let begun = Instant::now();
    loop {
        let models = models(followers).await?;
        let is_settled = |Model { live, .. }: &Model| match &*live.state {
            "unowned" => false,
            "running" => live.behind == 0,
            _ => true,
        };
        if !shop.runs || models.iter().all(is_settled) || begun.elapsed() > SETTLING {
            return Ok(models);
        }
        sleep(LOOK).await;
    }
}

/// A row a read model, and below it one for what is being built for it.
fn listed(models: &[Model]) -> Table {
    let mut table = table([
        "name",
        "version",
        "state",
        "position",
        "behind",
        "seconds behind",
        "rate",
        "eta",
        "parked",
        "owner",
        "reason",
    ]);
    for model in models {
        table.add_row(row(&model.name, &model.live));
        for (what, build) in [("rebuild", &model.rebuild), ("verify", &model.verify)] {
            if let Some(build) = build {
                table.add_row(row(&format!("└ {what}"), build));
            }
        }
    }
    for words in [2, 9, 10] {
        if let Some(column) = table.column_mut(words) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table
}

fn row(name: &str, build: &Build) -> [String; 11] {
    let none = || "–".to_owned();
    [
        name.into(),
        build.version.to_string(),
        build.state.clone(),
        count(build.position.get()),
        count(build.behind),
        count(build.seconds_behind as i64),
        build.rate.map_or_else(none, |rate| format!("{}/s", count(rate as i64))),
        build.seconds_to_catch_up.map_or_else(none, span),
        count(build.parked),
        build.owner.clone().unwrap_or_else(none),
        build.reason.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::model::tests::build, *};

    #[test]
    fn a_rebuild_stands_below_what_serves() {
        let rebuild = Build { rate: Some(1_200.0), seconds_to_catch_up: Some(90.0), ..build("running", 400, 1_100) };
        let live = Build { parked: 2, owner: Some("shop 1".into()), ..build("running", 1_500, 0) };
        let model = Model { name: "sales".into(), live, rebuild: Some(rebuild), verify: None };

        let text = listed(&[model]).trim_fmt();

        let words = |part: &str| {
            let line = text.lines().find(|line| line.contains(part)).unwrap();
            line.split(['│', '┆']).map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words("sales"), "sales 2 running 1,500 0 0 – – 2 shop 1");
        assert_eq!(words("rebuild"), "└ rebuild 2 running 400 1,100 110 1,200/s 1 min 0 –");
    }
}
