//! Who asks. Every storage method takes a [`Scope`], so no query can be written that forgets whose rows it may see.

use uuid::Uuid;

/// The tenant every request belongs to until tenants are configured.
pub const DEFAULT_TENANT: Uuid = Uuid::nil();

/// The rows one caller may see and change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One tenant's rows: every request of a client.
    Tenant(Uuid),
    /// All rows: the server's own work (claiming runs, renewing leases, sweeping). Never derived from a request.
    Server,
}

impl Scope {
    /// The tenant to write new rows for; the server itself writes for the default tenant.
    pub fn tenant(&self) -> Uuid {
        match self {
            Scope::Tenant(tenant) => *tenant,
            Scope::Server => DEFAULT_TENANT,
        }
    }

    /// The tenant filter of a query: `None` means all tenants.
    pub fn filter(&self) -> Option<Uuid> {
        match self {
            Scope::Tenant(tenant) => Some(*tenant),
            Scope::Server => None,
        }
    }
}

impl Default for Scope {
    fn default() -> Self {
        Scope::Tenant(DEFAULT_TENANT)
    }
}
