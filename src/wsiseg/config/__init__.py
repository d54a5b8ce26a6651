"""The settings of every command, frozen and checked as they are made: a module a verb."""
