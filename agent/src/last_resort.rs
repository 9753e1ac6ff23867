//! Keeps the age at which the machine goes off by itself, its agent dead or alive, at what the settings say.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::machine::Machine;

/// The last resort comes after everything else that ends a machine of that age.
const LATER: Duration = Duration::from_secs(300);

/// Arms it, and again for each other age; 0 is none. An agent that is started again leaves what its predecessor armed: its
/// operator may have allowed the machine to get older than its own settings do, and it has not said so yet. A machine without it still ends in every other way: no reason not to
/// work.
pub(crate) async fn keep(machine: Arc<dyn Machine>, mut ages: watch::Receiver<Duration>) {
    if machine.has_limited_lifetime() && ages.changed().await.is_err() {
        return;
    }
    loop {
        let age = *ages.borrow_and_update();
        let age = (!age.is_zero()).then(|| age.saturating_add(LATER));
        if let Err(error) = machine.limit_lifetime(age).await {
            tracing::error!(%error, "this machine's greatest age is not the one in the settings");
        }
        if ages.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::sync::mpsc;

    use super::*;
    use crate::machine::MachineError;

    struct Told(mpsc::UnboundedSender<Option<Duration>>, bool);

    #[async_trait]
    impl Machine for Told {
        async fn power_off(&self) -> Result<(), MachineError> {
            Ok(())
        }

        fn has_limited_lifetime(&self) -> bool {
            self.1
        }

        async fn limit_lifetime(&self, age: Option<Duration>) -> Result<(), MachineError> {
            self.0.send(age).expect("heard");
            let source = std::io::ErrorKind::TimedOut.into();
            Err(MachineError::Io { action: "arm the timer", source })
        }
    }

    #[tokio::test]
    async fn the_next_agent_changes_nothing_until_it_is_told() {
        let (told, mut hears) = mpsc::unbounded_channel();
        let ages = watch::Sender::new(Duration::from_secs(100));
        let keeping = tokio::spawn(keep(Arc::new(Told(told, true)), ages.subscribe()));
        tokio::task::yield_now().await;
        assert!(hears.is_empty());
        ages.send_replace(Duration::from_secs(60));
        assert_eq!(hears.recv().await, Some(Some(Duration::from_secs(360))));
        drop(ages);
        keeping.await.expect("ended with the agent");
    }

    #[tokio::test]
    async fn every_age_of_the_settings_is_armed_five_minutes_later_even_after_a_failure() {
        let (told, mut hears) = mpsc::unbounded_channel();
        let ages = watch::Sender::new(Duration::from_secs(100));
        let keeping = tokio::spawn(keep(Arc::new(Told(told, false)), ages.subscribe()));
        assert_eq!(hears.recv().await, Some(Some(Duration::from_secs(400))));
        ages.send_replace(Duration::from_secs(60));
        assert_eq!(hears.recv().await, Some(Some(Duration::from_secs(360))));
        ages.send_replace(Duration::ZERO);
        assert_eq!(hears.recv().await, Some(None));
        drop(ages);
        keeping.await.expect("ended with the agent");
    }
}
