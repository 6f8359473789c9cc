//! Protection: the roles that a store should be used with, and what is missing from it.

use sqlx::Row;

use crate::{error::StoreError, store::Annals};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A promise is weaker than it should be, or will be.
    Warning,
    /// A promise is broken.
    Fault,
}

/// Something that [`Annals::doctor`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, and where.
    pub what: String,
    /// What cures it.
    pub cure: String,
}

/// The names of a store's roles. Roles belong to the whole server, so the names carry database and store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// Owns the store and may migrate it.
    pub owner: String,
    /// Appends and projects; cannot alter history. The application logs in as a member of it.
    pub writer: String,
    /// Reads.
    pub reader: String,
}

impl Annals {
    /// Looks for protection that is missing: guards, settings, roles, transactions that hold readers back, followers
    /// that fail. Empty when all is well. Faults come first.
    ///
    /// # Errors
    /// As any read: [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn doctor(&self) -> Result<Vec<Finding>, StoreError> {
        let (sql, positions) = (self.inner.sql.doctor.clone(), self.inner.sql.check_positions.clone());
        let rows = self
            .inner
            .read("look for missing protection", |mut conn| {
                let sql = sql.clone();
                async move { sqlx::query(sql).fetch_all(&mut *conn).await }
            })
            .await?;
        let faults: Vec<String> = self
            .inner
            .read("check the sequence of positions", |mut conn| {
                let positions = positions.clone();
                async move { sqlx::query_scalar(positions).fetch_all(&mut *conn).await }
            })
            .await?;
        let mut findings: Vec<Finding> = faults
            .into_iter()
            .map(|what| Finding { severity: Severity::Fault, what, cure: "as it says".into() })
            .chain(rows.iter().map(|row| Finding {
                severity: if row.get::<&str, _>(0) == "fault" { Severity::Fault } else { Severity::Warning },
                what: row.get(1),
                cure: row.get(2),
            }))
            .collect();
        for holder in self.holders().await? {
            if holder.age.as_secs() >= 5 {
                let pid = holder.pid.map_or_else(|| "none".into(), |pid| pid.to_string());
                findings.push(Finding {
                    severity: Severity::Warning,
                    what: format!(
                        "readers wait at position {} for a transaction that has appended and is open for {} s: pid {pid}, \
                         application {:?}, {}",
                        holder.position,
                        holder.age.as_secs(),
                        holder.application,
                        holder.state
                    ),
                    cure: holder.pid.map_or_else(
                        || "commit or roll back the prepared transaction".into(),
                        |pid| format!("end it, or select pg_terminate_backend({pid})"),
                    ),
                });
            }
        }
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(findings)
    }

    /// Makes the store's roles, or brings their grants up to date, and gives the store to the owner role.
    ///
    /// Call it once, from a role with CREATEROLE that owns the store, and again after adding read models by another role.
    /// The application then logs in as a member of [`Roles::writer`], which cannot alter history: P11.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if this role may not make roles or does not own the store. Nothing is changed then.
    pub async fn create_roles(&self) -> Result<Roles, StoreError> {
        let what = "create the store's roles";
        let mut conn = self.inner.reads.acquire().await.map_err(StoreError::on(what))?;
        sqlx::raw_sql(self.inner.sql.create_roles.clone()).execute(&mut *conn).await.map_err(StoreError::on(what))?;
        let row = sqlx::query(self.inner.sql.read_roles.clone()).fetch_one(&mut *conn).await;
        let row = row.map_err(StoreError::on(what))?;
        Ok(Roles { owner: row.get(0), writer: row.get(1), reader: row.get(2) })
    }
}
