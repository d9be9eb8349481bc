"""Teachers: where their outputs come from, how they are trained and kept."""

from akd.teacher.source import LiveTeacher, TeacherSource

__all__ = ["LiveTeacher", "TeacherSource"]
