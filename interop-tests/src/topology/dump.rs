//! What the kernel knew when a scenario failed.

use std::path::Path;
use std::sync::Mutex;

use super::Place;

/// All places of this scenario. A global, because a scenario that hangs is looked into from another
/// thread.
static PLACES: Mutex<Vec<Place>> = Mutex::new(Vec::new());

pub(super) fn register(place: &Place) {
    if let Ok(mut places) = PLACES.lock() {
        places.push(place.clone());
    }
}

/// Writes what the kernel holds for each place of this scenario to `NAME.kernel.txt`.
pub fn dump_all(out: &Path) {
    let places = PLACES.lock().map(|places| places.clone()).unwrap_or_default();
    for place in places {
        let file = out.join(format!("{}.kernel.txt", place.name()));
        std::fs::write(file, place.kernel_dump()).ok();
    }
}

/// The places of this scenario and the shell commands that enter them, for `--keep`.
pub(crate) fn entrances() -> Vec<(String, String)> {
    let places = PLACES.lock().map(|places| places.clone()).unwrap_or_default();
    places
        .iter()
        .map(|place| {
            let command = place.command("");
            let words: Vec<_> = command
                .get_args()
                .take_while(|word| *word != "--")
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            (place.name().to_owned(), format!("nsenter {} --", words.join(" ")))
        })
        .collect()
}
