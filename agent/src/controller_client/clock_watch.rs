//! Logs when the system clock is wrong, and when it is right again. Stores the witness for the time
//! (see [`crate::clock`]) as soon as there is one, in case the agent is killed.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::client::ControllerClient;

/// Interval of the checks. A check reads two clocks.
const INTERVAL: Duration = Duration::from_secs(5);

/// Runs until the agent ends.
pub(super) async fn run(controller: &ControllerClient) {
    let clock = &controller.clock;
    let mut wrong = false;
    let mut stored = None;
    loop {
        // Reading the time makes the system clock the witness.
        clock.unix_time();
        let fault = clock.readings().fault();
        match &fault {
            Some(fault) if !wrong => warn!("{fault}"),
            None if wrong => info!("this node's clock is right again"),
            _ => {}
        }
        wrong = fault.is_some();
        let witness = clock.is_witnessed_by_controller();
        if witness != stored {
            match clock.save_floor(&controller.state) {
                Ok(()) => stored = witness,
                Err(error) => warn!(%error, "cannot store the last known time"),
            }
        }
        sleep(INTERVAL).await;
    }
}
