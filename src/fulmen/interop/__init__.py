"""Types of other libraries, taught to the verbs: each file is loaded when a type of its library is first seen."""
