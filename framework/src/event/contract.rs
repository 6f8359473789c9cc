//! What this build knows about the stored events of each aggregate, checked before the first one is read.

use std::{
    any::{TypeId, type_name},
    borrow::Cow,
    collections::BTreeMap,
};

use serde_json::Value;

use super::{
    Event, Payload, Recorded, Upcast, decode,
    probe::{Shape, shape_of, shape_within},
};
use crate::{BoxError, InvalidInput, StreamId, Undecodable};

/// Why an event type in Rust cannot stand for stored events. Found at start-up, before anything is read or written.
///
/// Caller: correct the code, as the message says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContractError {
    /// Only an externally tagged enum gives each event a name to be stored under.
    #[error(
        "{rust_type} is no externally tagged enum (serde finds: {found}); make it a plain enum, without #[serde(tag)], \
         #[serde(untagged)] or a struct around it"
    )]
    NotTagged {
        /// The type.
        rust_type: &'static str,
        /// What serde says about it.
        found: String,
    },
    /// An enum without variants has no events.
    #[error("{rust_type} has no variants; give it one for each event")]
    NoVariants {
        /// The type.
        rust_type: &'static str,
    },
    /// A variant of a union must hold the events of one aggregate, and nothing else.
    #[error(
        "variant {category} of the union {rust_type} holds no externally tagged enum (serde finds: {found}); \
         write {category}(TheEventEnum)"
    )]
    UnionVariant {
        /// The union.
        rust_type: &'static str,
        /// The variant, by its serde name.
        category: &'static str,
        /// What serde says about its content.
        found: String,
    },
    /// A union is only read; an aggregate has events of its own.
    #[error("{rust_type} is a union, which is only read; the aggregate {category:?} needs an enum of its own events")]
    UnionAppended {
        /// The union.
        rust_type: &'static str,
        /// The aggregate's category.
        category: String,
    },
    /// The schema versions and upcasts contradict each other.
    #[error("the schema versions of {rust_type} do not add up: {}", problems.join("; "))]
    Versions {
        /// The type.
        rust_type: &'static str,
        /// Everything that is missing or wrong.
        problems: Vec<String>,
    },
    /// Something reads events of which this build cannot read all.
    #[error("{rust_type} cannot read what it asks for: {}", problems.join("; "))]
    Reader {
        /// The type that is read into.
        rust_type: &'static str,
        /// Every category and event type that is missing.
        problems: Vec<String>,
    },
    /// An aggregate's `TYPE` cannot begin the name of a stream.
    #[error("no stream can have the category {category:?}; give the aggregate another `TYPE`")]
    Category {
        /// The category.
        category: String,
        /// Which rule it breaks.
        #[source]
        source: InvalidInput,
    },
    /// Two aggregates have the same category.
    #[error("two aggregates are registered for the category {category:?}; give one of them another `TYPE`")]
    Twice {
        /// The category.
        category: String,
    },
}

/// Every stored type of `E`, aliases included; the categories if it is a union. Empty if it is no proper enum.
pub(crate) fn event_types<E: Event>() -> &'static [&'static str] {
    match shape_of::<E>() {
        Shape::Enum(variants) => variants,
        Shape::Other(_) => &[],
    }
}

/// Checks that `E` can name its events and that an upcast leads from every older schema version to the current one.
///
/// # Errors
/// [`ContractError`]; everything that is wrong with the versions comes in one error.
pub(crate) fn check_contract<E: Event>() -> Result<&'static [&'static str], ContractError> {
    let rust_type = type_name::<E>();
    let types = match shape_of::<E>() {
        Shape::Enum([]) => return Err(ContractError::NoVariants { rust_type }),
        Shape::Enum(types) => types,
        Shape::Other(found) => return Err(ContractError::NotTagged { rust_type, found }),
    };
    if !E::UNION {
        check_versions::<E>(types)?;
        return Ok(types);
    }
    for category in types {
        match shape_within::<E>(category) {
            Shape::Enum([]) => {
                let found = "an enum without variants".to_owned();
                return Err(ContractError::UnionVariant { rust_type, category, found });
            }
            Shape::Enum(_) => {}
            Shape::Other(found) => return Err(ContractError::UnionVariant { rust_type, category, found }),
        }
    }
    Ok(types)
}

fn check_versions<E: Event>(types: &[&'static str]) -> Result<(), ContractError> {
    let upcasts = E::upcasts();
    let mut problems = vec![];
    for event_type in types {
        let current = E::schema_version(event_type);
        if current == 0 {
            problems.push(format!("the version of {event_type} is 0, and versions start at 1"));
        }
        for from in 1..current {
            match upcasts.iter().filter(|upcast| upcast.event_type == *event_type && upcast.from == from).count() {
                0 => problems.push(format!("{event_type} has no upcast from version {from} to {}", from + 1)),
                1 => {}
                _ => problems.push(format!("{event_type} has several upcasts from version {from}")),
            }
        }
    }
    for Upcast { event_type, from, .. } in &upcasts {
        if !types.contains(event_type) {
            problems.push(format!("there is an upcast for {event_type}, which is no event type of it"));
        } else if *from == 0 || *from >= E::schema_version(event_type) {
            problems.push(format!("the upcast of {event_type} from version {from} leads past its current version"));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ContractError::Versions { rust_type: type_name::<E>(), problems }) }
}

/// The stored events of one category.
#[derive(Debug)]
pub(crate) struct Contract {
    event: TypeId,
    types: Vec<KnownType>,
}

#[derive(Debug)]
struct KnownType {
    name: &'static str,
    /// The version that this build writes and decodes.
    version: u16,
    /// Step `n` leads from version `n + 1` to the next.
    upcasts: Vec<Upcast>,
}

impl Contract {
    /// What `E` says about the events of `category`.
    ///
    /// # Errors
    /// As [`check_contract`], and for a union.
    fn of<E: Event>(category: &str) -> Result<Self, ContractError> {
        if E::UNION {
            return Err(ContractError::UnionAppended { rust_type: type_name::<E>(), category: category.to_owned() });
        }
        let mut upcasts = E::upcasts();
        upcasts.sort_by_key(|upcast| upcast.from);
        let known = |&name| KnownType {
            name,
            version: E::schema_version(name),
            upcasts: upcasts.iter().filter(|upcast| upcast.event_type == name).copied().collect(),
        };
        let types = check_contract::<E>()?.iter().map(known).collect();
        Ok(Self { event: TypeId::of::<E>(), types })
    }

    /// The payload in the current schema version; borrowed, and not looked at, if it is stored in that.
    fn current<'r>(&self, recorded: &'r Recorded<Payload>) -> Result<Cow<'r, str>, BoxError> {
        let Some(known) = self.types.iter().find(|known| *known.name == *recorded.event_type) else {
            return Err(format!("the event type is not known; known are {}", self.names()).into());
        };
        let stored = recorded.schema_version;
        if stored == known.version {
            return Ok(Cow::Borrowed(recorded.event.as_str()));
        }
        if stored > known.version {
            return Err(format!("a newer build wrote it; this one knows the versions up to {}", known.version).into());
        }
        if stored == 0 {
            return Err("schema versions start at 1".into());
        }
        let mut json: Value = serde_json::from_str(recorded.event.as_str())?;
        for step in &known.upcasts[usize::from(stored) - 1..] {
            json = (step.upcast)(json, recorded)
                .map_err(|error| BoxError::from(format!("the upcast from version {} failed: {error}", step.from)))?;
        }
        Ok(Cow::Owned(serde_json::to_string(&json)?))
    }

    fn names(&self) -> String {
        self.types.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
    }
}

/// The contracts of all registered aggregates, by category.
#[derive(Debug, Default)]
pub(crate) struct Contracts(BTreeMap<String, Contract>);

impl Contracts {
    /// Registers the events of the aggregate `category`.
    ///
    /// # Errors
    /// As [`check_contract`], for a union, and for a category that is registered already.
    pub(crate) fn register<E: Event>(&mut self, category: &str) -> Result<(), ContractError> {
        if let Err(source) = StreamId::of(category, "0") {
            return Err(ContractError::Category { category: category.to_owned(), source });
        }
        self.register_own::<E>(category)
    }

    /// The same for a category of the framework's own streams.
    pub(crate) fn register_own<E: Event>(&mut self, category: &str) -> Result<(), ContractError> {
        let contract = Contract::of::<E>(category)?;
        if self.0.insert(category.to_owned(), contract).is_some() {
            return Err(ContractError::Twice { category: category.to_owned() });
        }
        Ok(())
    }

    /// The categories whose events decode into `E`, sorted: a union's variants, else every category registered with `E`
    /// itself.
    pub(crate) fn categories_of<E: Event>(&self) -> Vec<String> {
        let id = TypeId::of::<E>();
        let own = |(category, contract): (&String, &Contract)| (contract.event == id).then(|| category.clone());
        let mut categories: Vec<String> = match E::UNION {
            true => event_types::<E>().iter().map(|&category| category.into()).collect(),
            false => self.0.iter().filter_map(own).collect(),
        };
        categories.sort();
        categories
    }

    /// The contract of `category`.
    pub(crate) fn get(&self, category: &str) -> Option<&Contract> {
        self.0.get(category)
    }

    /// Checks that `E`, which a view or another follower reads, takes every event of its categories but the types `skips`.
    ///
    /// # Errors
    /// [`ContractError::Reader`] lists categories without an aggregate and event types that `E` lacks; also as
    /// [`check_contract`].
    pub(crate) fn check_reader<E: Event>(&self, skips: &[&str]) -> Result<(), ContractError> {
        check_contract::<E>()?;
        let categories = self.categories_of::<E>();
        let mut problems = vec![];
        if categories.is_empty() {
            problems.push("no registered aggregate has these events; add .aggregate::<…>() to the app".to_owned());
        }
        for category in categories {
            let Some(contract) = self.get(&category) else {
                problems.push(format!("no aggregate is registered for {category:?}; add .aggregate::<…>() to the app"));
                continue;
            };
            let Shape::Enum(readable) = (if E::UNION { shape_within::<E>(&category) } else { shape_of::<E>() }) else {
                continue; // refused above
            };
            let needed = contract.types.iter().filter(|known| !skips.contains(&known.name));
            for known in needed.filter(|known| !readable.contains(&known.name)) {
                problems.push(format!("{} of {category:?} is missing in it", known.name));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(ContractError::Reader { rust_type: type_name::<E>(), problems }) }
    }

    /// Decodes a stored event, led to the current schema version first if it is older.
    ///
    /// # Errors
    /// [`Undecodable`]: the category or type is not registered, a newer build wrote it, or an upcast or serde refused.
    pub(crate) fn decode<E: Event>(&self, recorded: &Recorded<Payload>) -> Result<Recorded<E>, Undecodable> {
        match self.event(recorded) {
            Ok(event) => Ok(recorded.with_event(event)),
            Err(source) => Err(Undecodable {
                stream: recorded.stream.clone(),
                version: recorded.version,
                position: recorded.position,
                event_type: recorded.event_type.to_string(),
                schema_version: recorded.schema_version,
                source,
            }),
        }
    }

    /// Whether events of `category` may be stored in an older schema version.
    pub(crate) fn has_upcasts(&self, category: &str) -> bool {
        self.get(category).is_none_or(|contract| contract.types.iter().any(|known| known.version > 1))
    }

    /// Decodes what is stored in the current schema version, without its envelope; none if it is not, or does not decode.
    pub(crate) fn decode_current<E: Event>(
        &self,
        category: &str,
        (event_type, schema_version, payload): (&str, u16, &str),
    ) -> Option<E> {
        let known = self.get(category)?.types.iter().find(|known| known.name == event_type)?;
        if known.version == schema_version { decode::decode(category, event_type, payload).ok() } else { None }
    }

    fn event<E: Event>(&self, recorded: &Recorded<Payload>) -> Result<E, BoxError> {
        let category = recorded.stream.category();
        let Some(contract) = self.get(category) else {
            return Err(format!("no aggregate is registered for {category:?}; add .aggregate::<…>() to the app").into());
        };
        let payload = contract.current(recorded)?;
        Ok(decode::decode(category, &recorded.event_type, &payload)?)
    }
}

#[cfg(test)]
mod tests;
