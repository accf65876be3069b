"""A small synthetic world whose attributes and harms are defined by rule, so an oracle measures them exactly."""
