//! A read model as an operator sees it: the partitions of a build taken together.

use std::collections::BTreeMap;

use annals::{Followers, PartitionLag, Position, StoreError};
use serde::Serialize;

/// States, from the best to the worst.
const STATES: [&str; 5] = ["running", "retrying", "unowned", "paused", "halted"];

/// A read model, and what is being built for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Model {
    pub(crate) name: String,
    /// What serves.
    #[serde(flatten)]
    pub(crate) live: Build,
    /// What will take its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rebuild: Option<Build>,
    /// What is only compared with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verify: Option<Build>,
}

/// One build of a read model, over all its partitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Build {
    pub(crate) generation: i64,
    pub(crate) version: i32,
    /// Of the partition that is worst off.
    pub(crate) state: String,
    /// Of the partition that is furthest behind.
    pub(crate) position: Position,
    pub(crate) behind: i64,
    pub(crate) seconds_behind: f64,
    /// Positions a second, together.
    pub(crate) rate: Option<f64>,
    pub(crate) seconds_to_catch_up: Option<f64>,
    pub(crate) partitions: i32,
    pub(crate) parked: i64,
    pub(crate) discarded: i64,
    /// Process names and ids.
    pub(crate) owner: Option<String>,
    /// Why it is in its state.
    pub(crate) reason: Option<String>,
}

/// Every read model of the store, by name.
///
/// # Errors
/// Postgres cannot be asked.
pub(crate) async fn models(followers: &Followers) -> Result<Vec<Model>, StoreError> {
    // Sagas and reactors follow the log, too, and show nothing.
    Ok(all(followers).await?.into_iter().filter(|(kind, _)| is_model(kind)).map(|(_, model)| model).collect())
}

/// Whatever follows the log, by name, each with what it is: read models, sagas and reactors.
///
/// # Errors
/// Postgres cannot be asked.
pub(crate) async fn all(followers: &Followers) -> Result<Vec<(String, Model)>, StoreError> {
    let mut builds: BTreeMap<(String, String), [Option<Build>; 3]> = BTreeMap::new();
    for partition in followers.lag().await? {
        let nth = match &*partition.purpose {
            "live" => 0,
            "rebuild" => 1,
            _ => 2,
        };
        let build = Build::from(&partition);
        let entry = &mut builds.entry((partition.follower, partition.kind)).or_default()[nth];
        *entry = Some(entry.take().map_or(build.clone(), |other| other.with(build)));
    }
    let model = |((name, kind), [live, rebuild, verify]): ((String, String), [Option<Build>; 3])| {
        Some((kind, Model { name, live: live?, rebuild, verify }))
    };
    Ok(builds.into_iter().filter_map(model).collect())
}

fn is_model(kind: &str) -> bool {
    matches!(kind, "view" | "projector")
}

/// The read model `name`.
///
/// # Errors
/// There is none of that name, or Postgres cannot be asked.
pub(crate) async fn model(followers: &Followers, name: &str) -> Result<Model, annals::BoxError> {
    let models = models(followers).await?;
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    models
        .into_iter()
        .find(|model| model.name == name)
        .ok_or_else(|| format!("there is no read model {name:?}: there are {}", names.join(", ")).into())
}

/// The read model, saga or reactor `name`.
///
/// # Errors
/// As [`model`].
pub(crate) async fn follower(followers: &Followers, name: &str) -> Result<Model, annals::BoxError> {
    let (models, others): (Vec<_>, Vec<_>) = all(followers).await?.into_iter().partition(|(kind, _)| is_model(kind));
    let names = |of: &[(String, Model)]| of.iter().map(|(_, model)| &*model.name).collect::<Vec<_>>().join(", ");
    let mut refusal = format!("there is no read model {name:?}: there are {}", names(&models));
    if !others.is_empty() {
        refusal.push_str(&format!("; and the sagas and reactors {}", names(&others)));
    }
    let found = models.into_iter().chain(others).map(|(_, model)| model).find(|model| model.name == name);
    found.ok_or_else(|| refusal.into())
}

impl From<&PartitionLag> for Build {
    fn from(lag: &PartitionLag) -> Self {
        Self {
            generation: lag.generation,
            version: lag.version,
            state: lag.state.clone(),
            position: lag.position,
            behind: lag.behind,
            seconds_behind: lag.seconds_behind,
            rate: lag.rate,
            seconds_to_catch_up: lag.seconds_to_catch_up,
            partitions: lag.partitions,
            parked: lag.parked,
            discarded: lag.discarded,
            owner: lag.owner.as_ref().map(|(name, pid)| format!("{name} {pid}")),
            reason: lag.reason.clone(),
        }
    }
}

impl Build {
    /// Whether it does not move until somebody resumes it.
    pub(crate) fn is_held(&self) -> bool {
        self.state == "paused" || self.state == "halted"
    }

    /// Where the log ends.
    pub(crate) fn end(&self) -> i64 {
        self.position.get() + self.behind
    }

    /// Takes another partition in.
    fn with(self, other: Self) -> Self {
        let rank = |build: &Self| STATES.iter().position(|state| *state == build.state).unwrap_or(STATES.len());
        let (worse, better) = if rank(&other) > rank(&self) { (other, self) } else { (self, other) };
        let most = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        let owner = match (worse.owner, better.owner) {
            (Some(a), Some(b)) if a.split(", ").all(|owner| owner != b) => Some(format!("{a}, {b}")),
            (a, b) => a.or(b),
        };
        Self {
            position: worse.position.min(better.position),
            behind: worse.behind.max(better.behind),
            seconds_behind: worse.seconds_behind.max(better.seconds_behind),
            rate: worse.rate.into_iter().chain(better.rate).reduce(|a, b| a + b),
            seconds_to_catch_up: most(worse.seconds_to_catch_up, better.seconds_to_catch_up),
            parked: worse.parked + better.parked,
            discarded: worse.discarded + better.discarded,
            owner,
            reason: worse.reason.or(better.reason),
            ..worse
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn build(state: &str, position: i64, behind: i64) -> Build {
        Build {
            generation: 7,
            version: 2,
            state: state.into(),
            position: Position::new(position),
            behind,
            seconds_behind: behind as f64 / 10.0,
            rate: None,
            seconds_to_catch_up: None,
            partitions: 2,
            parked: 0,
            discarded: 0,
            owner: None,
            reason: None,
        }
    }

    #[test]
    fn partitions_together_are_as_the_worst_of_them() {
        let first = Build {
            rate: Some(10.0),
            parked: 2,
            owner: Some("shop 1".into()),
            seconds_to_catch_up: Some(1.0),
            ..build("running", 90, 10)
        };
        let second = Build {
            rate: Some(5.0),
            parked: 1,
            owner: Some("shop 2".into()),
            reason: Some("no space".into()),
            ..build("retrying", 40, 60)
        };

        let both = first.with(second);

        assert_eq!((&*both.state, both.position.get(), both.behind, both.parked), ("retrying", 40, 60, 3));
        assert_eq!((both.rate, both.seconds_to_catch_up, both.seconds_behind), (Some(15.0), Some(1.0), 6.0));
        assert_eq!((both.owner.as_deref(), both.reason.as_deref()), (Some("shop 2, shop 1"), Some("no space")));
    }

    #[test]
    fn a_process_that_has_two_partitions_is_named_once() {
        let own = || Build { owner: Some("shop 1".into()), ..build("running", 1, 0) };

        assert_eq!(own().with(own()).owner.as_deref(), Some("shop 1"));
        assert_eq!(own().with(build("unowned", 1, 0)).owner.as_deref(), Some("shop 1"));
    }

    #[test]
    fn json_has_one_object_a_read_model_and_its_rebuild_within() {
        let model = |rebuild| Model { name: "sales".into(), live: build("running", 9, 1), rebuild, verify: None };

        let json = serde_json::to_value(model(None)).unwrap();
        assert_eq!((&json["name"], &json["version"], &json["state"]), (&"sales".into(), &2.into(), &"running".into()));
        assert_eq!((&json["position"], &json["behind"], &json["parked"]), (&9.into(), &1.into(), &0.into()));
        assert!(json.get("rebuild").is_none());

        let json = serde_json::to_value(model(Some(build("running", 4, 6)))).unwrap();
        assert_eq!((&json["rebuild"]["position"], &json["rebuild"]["behind"]), (&4.into(), &6.into()));
    }
}
