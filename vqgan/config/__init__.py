"""Typed configuration: YAML and options into frozen, validated objects; schedules as pure functions of the step."""
