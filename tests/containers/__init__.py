"""The compose file, brought up for real: ``stand_ins`` builds images, ``trial`` runs it."""
