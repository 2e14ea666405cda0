//! Records ops and replays them backwards.
