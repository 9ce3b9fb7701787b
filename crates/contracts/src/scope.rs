//! The permissions of a token (contract section 3, column "scope").

use serde::Serialize;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// One permission.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Display, EnumString, IntoStaticStr, VariantArray,
)]
#[allow(missing_docs)]
pub enum Scope {
    #[strum(serialize = "runs:create")]
    #[serde(rename = "runs:create")]
    RunsCreate,
    #[strum(serialize = "runs:read")]
    #[serde(rename = "runs:read")]
    RunsRead,
    #[strum(serialize = "runs:execute")]
    #[serde(rename = "runs:execute")]
    RunsExecute,
    #[strum(serialize = "callback-secrets:create")]
    #[serde(rename = "callback-secrets:create")]
    CallbackSecretsCreate,
    #[strum(serialize = "callback-secrets:read")]
    #[serde(rename = "callback-secrets:read")]
    CallbackSecretsRead,
    #[strum(serialize = "callback-secrets:edit")]
    #[serde(rename = "callback-secrets:edit")]
    CallbackSecretsEdit,
    #[strum(serialize = "callback-secrets:delete")]
    #[serde(rename = "callback-secrets:delete")]
    CallbackSecretsDelete,
}

/// The permissions of one token. A token created without named scopes has all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Scopes {
    /// Only these.
    Named(Vec<Scope>),
    /// All, including those of later versions. Written as `null`.
    All,
}

impl Scopes {
    /// Returns whether `scope` is granted.
    pub fn allow(&self, scope: Scope) -> bool {
        match self {
            Scopes::All => true,
            Scopes::Named(named) => named.contains(&scope),
        }
    }
}
