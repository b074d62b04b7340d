//! Who sends a request: its API key and its network address.

use std::collections::BTreeSet;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use twice_log::CampaignId;
use twice_log::event::json::{RejectCode, Rejection};
use twice_store::{ApiKey, CampaignSet, Scope, Tier};

use crate::error::{Error, Result};

/// The sender of a request. Every handler that reads or changes data takes one: this is where keys are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Id of the API key; empty on a node that runs without keys, which listens on loopback only.
    pub key_id: String,
    /// The key; `None` on a node that runs without keys, where everybody may do everything.
    pub key: Option<Arc<ApiKey>>,
    /// Address of the sender; `None` where the connection has none.
    pub address: Option<IpAddr>,
    /// Where the handler says what is to be done, for the log of actions; `None` for what is not noted.
    pub noted: Option<Arc<OnceLock<String>>>,
}

impl Caller {
    /// Says `Forbidden` unless the key has the scope; `admin` has every one.
    pub fn require(&self, scope: Scope) -> Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        if key.scopes.contains(&scope) || key.scopes.contains(&Scope::Admin) {
            return Ok(());
        }
        let name = serde_json::to_value(scope).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or_default().to_owned();
        Err(Error::Forbidden { detail: format!("this needs a key with scope {name}") })
    }

    /// Says `Forbidden` unless the key has the scope, for this campaign. The answer is the same whether the campaign
    /// exists or not.
    pub fn require_for(&self, scope: Scope, campaign: &CampaignId) -> Result<()> {
        self.require(scope)?;
        if self.campaigns().is_none_or(|campaigns| campaigns.contains(campaign)) {
            return Ok(());
        }
        Err(Error::Forbidden { detail: format!("the key does not allow campaign {campaign}") })
    }

    /// Returns the campaigns the key is limited to; `None` if it reaches all.
    pub fn campaigns(&self) -> Option<&BTreeSet<CampaignId>> {
        let key = self.key.as_deref()?;
        match &key.campaigns {
            _ if key.scopes.contains(&Scope::Admin) => None,
            CampaignSet::All => None,
            CampaignSet::Only(campaigns) => Some(campaigns),
        }
    }

    /// Says `Forbidden` unless the key has the scope, for every campaign: what is asked for is not of single ones.
    pub fn require_every_campaign(&self, scope: Scope) -> Result<()> {
        self.require(scope)?;
        if self.campaigns().is_none() {
            return Ok(());
        }
        Err(Error::Forbidden { detail: "this needs a key for all campaigns".to_owned() })
    }

    /// Returns the campaigns a list may show: the one asked for, else all that the key reaches; `None` for every one.
    pub fn visible(&self, scope: Scope, asked: Option<CampaignId>) -> Result<Option<BTreeSet<CampaignId>>> {
        match asked {
            Some(campaign) => {
                self.require_for(scope, &campaign)?;
                Ok(Some([campaign].into()))
            }
            None => {
                self.require(scope)?;
                Ok(self.campaigns().cloned())
            }
        }
    }

    /// Says what the request is to do, beside its method and path: it stands in the log of actions with its answer.
    pub fn note(&self, what: impl Into<String>) {
        if let Some(noted) = &self.noted {
            // Said once: the first is what was asked for.
            let _ = noted.set(what.into());
        }
    }

    /// Refuses a click or verdict of a campaign that the key does not reach; the others of its request go on.
    pub fn admit(&self, campaign: &CampaignId) -> Result<(), Rejection> {
        if self.campaigns().is_none_or(|campaigns| campaigns.contains(campaign)) {
            return Ok(());
        }
        let detail = format!("the key does not allow campaign {campaign}");
        Err(Rejection::new(RejectCode::Forbidden, detail))
    }

    /// Returns the tier whose limits hold for the key.
    pub fn tier(&self) -> Tier {
        self.key.as_ref().map(|key| key.tier).unwrap_or_default()
    }
}

impl FromRequest for Caller {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        // The guard leaves one for every request it lets through with a key, or on a node without keys.
        let caller = request.extensions().get::<Caller>().cloned();
        ready(caller.ok_or_else(|| Error::Unauthorized { detail: "this needs an API key".to_owned() }.into()))
    }
}

/// Returns the address of the sender: the peer's, or what the outermost of our proxies saw as its peer.
///
/// Each proxy appends its peer to `X-Forwarded-For`, so what stands left of ours is the sender's own claim.
pub(crate) fn address_of(request: &HttpRequest, trusted_proxies: u8) -> Option<IpAddr> {
    let peer = request.peer_addr().map(|peer| peer.ip());
    let Some(place) = usize::from(trusted_proxies).checked_sub(1) else { return peer };
    let forwarded: Vec<&str> = request
        .headers()
        .get_all("x-forwarded-for")
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    // A shorter list than there are proxies means a sender that went round some of them: believe the peer alone.
    forwarded.iter().rev().nth(place).and_then(|address| address.parse().ok()).or(peer)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn address(trusted_proxies: u8, forwarded: &str) -> Option<String> {
        let request = TestRequest::default()
            .peer_addr("192.0.2.1:4000".parse().expect("address"))
            .insert_header(("X-Forwarded-For", forwarded))
            .to_http_request();
        address_of(&request, trusted_proxies).map(|address| address.to_string())
    }

    #[test]
    fn forwarded_addresses_are_believed_only_as_far_as_our_proxies_go() {
        let spoofed = "203.0.113.9, 198.51.100.2, 198.51.100.1";
        assert_eq!(address(0, spoofed).as_deref(), Some("192.0.2.1"));
        assert_eq!(address(1, spoofed).as_deref(), Some("198.51.100.1"));
        assert_eq!(address(2, spoofed).as_deref(), Some("198.51.100.2"));
        assert_eq!(address(9, spoofed).as_deref(), Some("192.0.2.1"));
        assert_eq!(address(1, "not an address").as_deref(), Some("192.0.2.1"));
    }
}
