//! A registered runner, its group, and its JIT config.

use std::time::Instant;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use uuid::Uuid;

use super::scope::Scope;

/// A registered runner.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) group: u64,
    pub(crate) labels: Vec<String>,
    pub(crate) work_folder: String,
    pub(crate) os: String,
    pub(crate) version: Option<String>,
    pub(crate) client: Uuid,
    pub(crate) secret: String,
    /// Registered by somebody else's machinery: shows as online or offline, gets no jobs.
    pub(crate) foreign: Option<bool>,
    pub(crate) session: Option<String>,
    pub(crate) job: Option<u64>,
    /// When its job was assigned; gone once the runner has taken it.
    pub(crate) assigned: Option<Instant>,
    pub(crate) last_seen: Instant,
    pub(crate) keep_until: Option<Instant>,
}

/// What a new registration is asked for with.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) scope: Scope,
    pub(crate) name: String,
    pub(crate) group: u64,
    pub(crate) labels: Vec<String>,
    pub(crate) work_folder: String,
}

/// A runner group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) default: bool,
}

impl Registration {
    pub(crate) fn new(id: u64, wanted: Wanted) -> Self {
        Self {
            id,
            name: wanted.name,
            scope: wanted.scope,
            group: wanted.group,
            labels: wanted.labels,
            work_folder: wanted.work_folder,
            os: "unknown".to_owned(),
            version: None,
            client: Uuid::new_v4(),
            secret: format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()),
            foreign: None,
            session: None,
            job: None,
            assigned: None,
            last_seen: Instant::now(),
            keep_until: None,
        }
    }

    /// Busy from the moment a job is assigned, and for as long as a test wants it.
    pub(crate) fn busy(&self) -> bool {
        self.job.is_some() || self.keep_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether it has every one of these labels.
    pub(crate) fn carries(&self, labels: &[String]) -> bool {
        labels.iter().all(|wanted| self.labels.iter().any(|own| own.eq_ignore_ascii_case(wanted)))
    }

    /// The shape of the REST API.
    pub(crate) fn json(&self, online: bool) -> Value {
        let labels: Vec<_> =
            (1..).zip(&self.labels).map(|(id, name)| json!({"id": id, "name": name, "type": "custom"})).collect();
        json!({
            "id": self.id,
            "runner_group_id": self.group,
            "name": self.name,
            "os": self.os,
            "status": if online { "online" } else { "offline" },
            "busy": self.busy(),
            "ephemeral": true,
            "version": self.version,
            "labels": labels,
        })
    }

    /// The files the runner starts from. The secret stands where the private key's exponent is: ours needs no RSA.
    pub(crate) fn jit_config(&self, url: &str) -> String {
        let settings = json!({
            "AgentId": self.id.to_string(), "AgentName": self.name, "PoolId": self.group.to_string(),
            "PoolName": "Default", "DisableUpdate": "False", "Ephemeral": "True", "SkipSessionRecover": "False",
            "ServerUrl": format!("{url}/"), "ServerUrlV2": format!("{url}/_runner/"), "GitHubUrl": "",
            "WorkFolder": self.work_folder, "UseV2Flow": "True", "UseRunnerAdminFlow": "True",
        });
        let credentials = json!({"Scheme": "OAuth", "Data": {
            "ClientId": self.client.to_string(), "AuthorizationUrl": format!("{url}/_runner/oauth2/token"),
            "RequireFipsCryptography": "True",
        }});
        let key = json!({
            "d": self.secret, "dp": "", "dq": "", "exponent": "AQAB", "inverseQ": "", "modulus": "", "p": "", "q": "",
        });
        let file = |content: &Value| STANDARD.encode(content.to_string());
        STANDARD.encode(
            json!({
                ".runner": file(&settings), ".credentials": file(&credentials), ".credentials_rsaparams": file(&key),
            })
            .to_string(),
        )
    }
}

impl Group {
    /// The shape of the REST API.
    pub(crate) fn json(&self, scope: &Scope, base: &str) -> Value {
        let mut group = json!({
            "id": self.id,
            "name": self.name,
            "visibility": "all",
            "default": self.default,
            "runners_url": format!("{base}{}/actions/runner-groups/{}/runners", scope.path(), self.id),
            "allows_public_repositories": false,
            "restricted_to_workflows": false,
            "selected_workflows": [],
            "workflow_restrictions_read_only": false,
        });
        if let (Scope::Organization(_), Some(fields)) = (scope, group.as_object_mut()) {
            fields.insert("inherited".to_owned(), json!(false));
        }
        group
    }
}
