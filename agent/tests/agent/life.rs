//! Where most tests begin and end: a runner that waits for a job, one that has one, one that is done with it.

use miglet_proto::v1::AgentState;
use tokio::process::Child;

use crate::{
    JIT,
    operator::{Operator, Session},
    world::World,
};

impl World {
    /// An agent whose runner waits for a job.
    pub(crate) async fn idle(&self, operator: &mut Operator) -> (Child, Session) {
        let agent = self.agent(operator);
        (agent, operator.idle_session().await)
    }

    /// One whose runner has a job.
    pub(crate) async fn busy(&self, operator: &mut Operator) -> (Child, Session) {
        let agent = self.agent(operator);
        (agent, self.busy_session(operator).await)
    }

    /// The session of the next agent that calls in, once its runner has a job.
    pub(crate) async fn busy_session(&self, operator: &mut Operator) -> Session {
        let mut session = operator.idle_session().await;
        self.start_job(&mut session).await;
        session
    }

    /// Gives the waiting runner a job, which its own hook then names.
    pub(crate) async fn start_job(&self, session: &mut Session) {
        self.touch("go");
        session.until("named", |s| s.report.job.as_ref().is_some_and(|job| !job.repository.is_empty())).await;
    }

    /// Lets the job end, and its runner with it.
    pub(crate) async fn end_job(&self, session: &mut Session) {
        self.touch("end");
        session.until_ended().await;
    }
}

impl Operator {
    /// The session of the next agent that calls in, once its runner waits for a job.
    pub(crate) async fn idle_session(&mut self) -> Session {
        let mut session = self.session().await;
        session.start_runner().await;
        session
    }
}

impl Session {
    /// Registers a runner, which then waits for a job.
    pub(crate) async fn start_runner(&mut self) {
        self.register("r1", JIT).await;
        self.until_state(AgentState::Idle).await;
    }

    /// Takes messages until the runner's end is reported.
    pub(crate) async fn until_ended(&mut self) {
        self.until("ended", |s| s.report.exit.is_some()).await;
    }
}
